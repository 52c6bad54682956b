"""Models of FiftyOne's model zoo, and where FiftyOne finds them."""
