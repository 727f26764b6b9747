"""Configs of trainings; `configs/` of a clone and `universeg_jax.configs` are one folder."""
