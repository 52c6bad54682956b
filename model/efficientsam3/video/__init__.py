"""Tracking of concepts and objects through videos."""
