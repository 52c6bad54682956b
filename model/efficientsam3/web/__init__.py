"""A page that segments pictures in the browser, without a server that computes."""
