"""What several host loops are made of: how media become tokens, how tokens are chosen, how noise is removed."""
