"""A table-top world: PyBullet scene, scripted expert, labelled failures, recording and closed-loop rollouts.

Needs the extra `sim` (PyBullet) as soon as a world is made; scenes and language need nothing.
"""

from vlascope.sim.episode import OUTCOMES, Episode, judge, run_episode
from vlascope.sim.expert import expert_action
from vlascope.sim.factorial import record_factorial
from vlascope.sim.failures import FAILURES, script_failure
from vlascope.sim.language import (
    COLOURS,
    MATERIALS,
    VOCABULARY,
    Instruction,
    Question,
    instructions,
    questions,
)
from vlascope.sim.preview import preview
from vlascope.sim.record import record_episodes, write_episodes
from vlascope.sim.rollout import Perturbation, RolloutResult, draw_task, rollout, wilson_interval
from vlascope.sim.scene import TEST_TABLES, TRAIN_TABLES, ObjectSpec, Scene, sample_scene
from vlascope.sim.world import Camera, Observation, State, TableTop

__all__ = [
    "COLOURS",
    "FAILURES",
    "MATERIALS",
    "OUTCOMES",
    "TEST_TABLES",
    "TRAIN_TABLES",
    "VOCABULARY",
    "Camera",
    "Episode",
    "Instruction",
    "ObjectSpec",
    "Observation",
    "Perturbation",
    "Question",
    "RolloutResult",
    "Scene",
    "State",
    "TableTop",
    "draw_task",
    "expert_action",
    "instructions",
    "judge",
    "preview",
    "questions",
    "record_episodes",
    "record_factorial",
    "rollout",
    "run_episode",
    "sample_scene",
    "script_failure",
    "wilson_interval",
    "write_episodes",
]
