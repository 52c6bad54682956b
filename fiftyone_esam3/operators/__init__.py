"""The operators of the plugin: each is a form for one run."""
