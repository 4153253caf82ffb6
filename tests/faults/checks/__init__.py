"""The checker's rules, by what they look at: answers, money, and what others observed meanwhile."""
