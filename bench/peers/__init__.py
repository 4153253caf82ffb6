"""The servers that Frontrow is measured beside. They stay as they are: what they are compared with changes."""
