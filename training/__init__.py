"""The part that simulates, trains, quantizes and evaluates. May import `device`."""
