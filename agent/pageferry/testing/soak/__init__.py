"""The soak (`make soak`): guests that go back and forth between two agents while things break."""
