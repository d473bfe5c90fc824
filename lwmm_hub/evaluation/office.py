"""Which classes of Office-31 and Office-Home a model knows, open-partial: tables of the protocol.

As You et al. (2019) and GLC split them: classes that both domains have, classes of the source
alone, classes of the target alone. A model is trained on the first two and is to call the third
unknown. Office-31's shared classes are those that Caltech-256 has too; otherwise the order is that
of the alphabet.
"""

from __future__ import annotations

from dataclasses import dataclass

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.label_spaces import canonical


@dataclass(frozen=True)
class OpenPartial:
    """A split of a data set's classes; the order is that of the model's outputs.

    Attributes:
        name: of the data set.
        shared: classes of source and target.
        source_private: classes of the source alone; no image of the target is of them.
        target_private: classes of the target alone; to be called unknown.
    """

    name: str
    shared: tuple[str, ...]
    source_private: tuple[str, ...]
    target_private: tuple[str, ...]

    @property
    def known(self) -> tuple[str, ...]:
        """The classes of the model, in label order; the index after them stands for unknown."""
        return self.shared + self.source_private

    def truth(self, label: str) -> int | None:
        """What a model should say of an image of a class.

        >>> office = open_partial("office-31")
        >>> office.truth("back_pack"), office.truth("pen"), office.truth("bottle")
        (0, 20, None)

        Returns:
            Index in `known`; the number of known classes for unknown; None for a class of the
            source alone, which the protocol leaves out of the target.

        Raises:
            EvaluationError: the data set has no such class.
        """
        name = canonical(label)
        for index, shared in enumerate(self.shared):
            if canonical(shared) == name:
                return index
        if name in map(canonical, self.target_private):
            return len(self.known)
        if name in map(canonical, self.source_private):
            return None
        raise EvaluationError(
            f"{label!r} is none of the {len(self.known) + len(self.target_private)} classes of "
            f"{self.name}. Look whether its folders are complete and nothing else is among them."
        )


def open_partial(name: str) -> OpenPartial:
    """The open-partial split of a data set.

    Args:
        name: "office-31" or "office-home".

    Raises:
        EvaluationError: no such data set.
    """
    if name not in _SPLITS:
        raise EvaluationError(
            f"no open-partial split is called {name!r}. There are {', '.join(_SPLITS)}."
        )
    classes, shared, private = _SPLITS[name]
    names = tuple(classes.split())
    return OpenPartial(name, names[:shared], names[shared:private], names[private:])


_OFFICE_31 = """
back_pack bike calculator headphones keyboard laptop_computer monitor mouse mug projector
bike_helmet bookcase bottle desk_chair desk_lamp desktop_computer file_cabinet letter_tray
mobile_phone paper_notebook
pen phone printer punchers ring_binder ruler scissors speaker stapler tape_dispenser trash_can
"""

_OFFICE_HOME = """
Alarm_Clock Backpack Batteries Bed Bike Bottle Bucket Calculator Calendar Candles
Chair Clipboards Computer Couch Curtains
Desk_Lamp Drill Eraser Exit_Sign Fan File_Cabinet Flipflops Flowers Folder Fork Glasses Hammer
Helmet Kettle Keyboard Knives Lamp_Shade Laptop Marker Monitor Mop Mouse Mug Notebook Oven Pan
Paper_Clip Pen Pencil Postit_Notes Printer Push_Pin Radio Refrigerator Ruler Scissors Screwdriver
Shelf Sink Sneakers Soda Speaker Spoon TV Table Telephone ToothBrush Toys Trash_Can Webcam
"""

# classes, how many are shared, how many the model knows
_SPLITS = {"office-31": (_OFFICE_31, 10, 20), "office-home": (_OFFICE_HOME, 10, 15)}
