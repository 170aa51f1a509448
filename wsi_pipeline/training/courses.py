"""Which architectures are trained in a course of their own."""

from wsi_pipeline.config.settings import TrainConfig
from wsi_pipeline.training.course import Course
from wsi_pipeline.training.protopnet import ProtoPNetCourse

COURSES: dict[str, type[Course]] = {"protopnet": ProtoPNetCourse}


def choose_course(config: TrainConfig) -> type[Course]:
    """Return the course of an architecture's training."""
    return COURSES.get(config.model.name, Course)
