"""Agents that live in Mirage worlds; a wheel carries this folder as `mirage_env.agents`.

config.py     what a YAML in envs_config/agents/ may say
simple.py     an agent is `begin` and `act`; random and constant ones
explorer.py   the scripted one: to the nearest frontier of the map, or to the goal
worlds.py     environments as a config describes them; pictures of training scenes; drafts alone
vec_env.py    a native vector environment as Stable-Baselines3 wants it
policy.py     the network that PPO trains, and a trained one at work
checkpoint.py policy and optimizer as one safetensors file
ppo.py        training by Stable-Baselines3
movers.py     agents as the movers of a rollout
evaluation.py episodes, scores with intervals, videos
proof.py      does an agent trained in dreams do well in the true world?
"""
