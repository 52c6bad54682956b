"""The operators of the plugin, one a file; each is a form and a call."""
