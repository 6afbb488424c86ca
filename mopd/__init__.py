"""How the student learns from its peers: Multi-Rollout On-Policy Distillation."""
