"""What attention is made of: positions, kinds of heads, and which positions are attended to."""
