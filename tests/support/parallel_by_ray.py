"""Trains a study in two workers of Ray Train: `python parallel_by_ray.py STUDY STORAGE`."""

import sys
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from fpatch.runs.training import train
from fpatch.study.config import load_study


def work(config: dict[str, Any]) -> None:
    train(load_study(config["study"]))


if __name__ == "__main__":
    study, storage = sys.argv[1:]
    ray.init("local", num_cpus=3, include_dashboard=False, _node_ip_address="127.0.0.1")
    TorchTrainer(
        work,
        train_loop_config={"study": study},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=storage),
    ).fit()
    ray.shutdown()
