"""Who acts: agents, and the rollouts of many episodes at once."""
