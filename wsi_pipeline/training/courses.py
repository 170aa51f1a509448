"""Which architectures and settings are trained in a course of their own."""

from wsi_pipeline.config.settings import TrainConfig, fine_tuning_settings
from wsi_pipeline.training.course import Course
from wsi_pipeline.training.fine_tuning import FineTuningCourse
from wsi_pipeline.training.protopnet import ProtoPNetCourse

COURSES: dict[str, type[Course]] = {"protopnet": ProtoPNetCourse}


def choose_course(config: TrainConfig) -> type[Course]:
    """Return the course of a training: the architecture's own, or that of its settings."""
    if config.model.name in COURSES:
        return COURSES[config.model.name]
    return FineTuningCourse if fine_tuning_settings(config) else Course
