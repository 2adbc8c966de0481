"""The engines: the contract that each keeps, the registry of what there is, and the choice between them."""
