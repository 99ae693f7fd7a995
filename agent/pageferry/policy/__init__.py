"""Pure decisions: page-in window, rounds, send order. Time and measurements are arguments."""
