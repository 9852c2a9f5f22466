"""The survey of vision-language pre-trained models as the registry's schema (Du et al., IJCAI 2022, arXiv 2202.10936).

`axes` holds the closed vocabulary of each axis and what each entry requires; `table` the survey's own Table 1.
"""

from tuwen.systems.survey.axes import Axes

__all__ = ["Axes"]
