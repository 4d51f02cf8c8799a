"""What an operator may do to a stream's plan: the decisions (`moves`), and how each is carried out."""
