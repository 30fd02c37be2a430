"""Which files make up the package; pyproject.toml has everything else."""

from setuptools import find_packages, setup

GIN_FILES = "t5scaling.files.gin"  # where they are installed; in a clone they are in gin/

setup(
    packages=[*find_packages(include=["t5scaling", "t5scaling.*", "tasks", "tasks.*"]), GIN_FILES],
    package_dir={GIN_FILES: "gin"},
    package_data={
        GIN_FILES: ["**/*.gin"],
        "tasks": ["corpus/*"],
        "t5scaling.analysis.presentation.html": ["page.css", "templates/*.html"],
    },
)
