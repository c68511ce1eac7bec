"""Train on some classes of each superclass, test on the others."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from monoeval.data.images import DataSpec, Hierarchy
from monoeval.data.subclasses import HIERARCHIES, drawn_subclasses, superclass_of
from monoeval.keys import key
from monoeval.scenarios.trial import TestSet, Trial
from monoeval.spec import Spec


class Subpopulation(Spec):
    """Superclasses are the labels; `train_fine` classes of each are drawn by the seed and seen in training.

    Level 0 is the test rows of those classes, level 1 the test rows of the classes that were held out. All that is
    fitted or chosen sees training rows of the drawn classes only. (BREEDS, Santurkar et al. 2021, made the same
    shift of ImageNet.)
    """

    name: Literal["subpopulation"] = "subpopulation"
    hierarchy: Hierarchy = "cifar100"
    train_fine: Annotated[int, Field(ge=1)] = 3

    def trials(self, data: DataSpec, seed: int) -> Iterator[Trial]:
        superclass = superclass_of(self.hierarchy)
        seen, held_out = drawn_subclasses(superclass, self.train_fine, seed)
        content = key(superclass)[:6]
        named = self.hierarchy if isinstance(self.hierarchy, str) else f"hierarchy-{content}"
        named = named.replace("\\", "/").rsplit("/", 1)[-1]
        # files of one name may hold unlike maps, which are unlike protocols
        exact = f"{named}-{content}" if isinstance(self.hierarchy, str) and named not in HIERARCHIES else named
        source = data.model_copy(update={"hierarchy": self.hierarchy, "subclasses": seen})
        for level, classes in enumerate((seen, held_out)):
            yield Trial(
                scenario=self.name,
                protocol=f"subpopulation/{exact}/train-{self.train_fine}@{level}",
                series=f"{named}, {self.train_fine} of each superclass trained",
                level=level,
                data=source,
                test=TestSet(data=source.model_copy(update={"subclasses": classes})),
                draw=seed,
            )
