"""The swarm: who has which chunk, and how the bytes get from agent to agent."""
