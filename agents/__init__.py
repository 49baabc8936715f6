"""Agents that live in Mirage worlds; a wheel carries this folder as `mirage_env.agents`."""
