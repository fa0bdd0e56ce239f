"""Whether a conversion still says what its source says, and the receipt for it."""
