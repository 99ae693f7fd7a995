"""Fault points and fakes that tests switch on; inert otherwise."""
