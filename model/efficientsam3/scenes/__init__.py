"""Sticker scenes: named art with exact mattes, composited into pictures and clips with truth."""
