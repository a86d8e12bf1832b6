"""What all systems share: the one driver, and what it trains, keeps, shows and draws with."""
