"""The attack suite: backdoored deliveries with known truth, kdaudit and its peers on the same teachers."""
