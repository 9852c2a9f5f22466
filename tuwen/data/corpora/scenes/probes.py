"""Scenes for probing a claim: neighbours that are alike, captions that tell of a part, texts that lost words."""

from dataclasses import replace

from tuwen.data.corpora.scenes.scene import SPAN, Draws, Scene, draw_places, make_scene
from tuwen.data.corpora.scenes.things import COLOURS


def clustered(seed: int, index: int, size: int, kinds: int, most: int) -> Scene:
    """A scene with the things of the first of its cluster of `size` rows, in other places on other ground."""
    first = index - index % SPAN % size
    shared = make_scene(seed, first, kinds, most)
    if index == first:
        return shared
    places = draw_places(Draws("cluster", seed, index), len(shared.objects))
    objects = [replace(item, x=x, y=y, size=side) for item, (x, y, side) in zip(shared.objects, places, strict=True)]
    own = make_scene(seed, index, kinds, most)
    return replace(own, objects=tuple(objects), held_out=shared.held_out)


def twin(scene: Scene, seed: int, index: int) -> Scene:
    """The same things with their places passed round, on ground of another colour: captions of places and of ground
    become false, those of things and how many stay true."""
    items = scene.objects
    moved = [
        replace(item, x=other.x, y=other.y, size=other.size)  # a large thing has no room in a small one's place
        for item, other in zip(items, (*items[1:], items[0]), strict=True)
    ]
    colour = Draws("twin", seed, index).choice([name for name in COLOURS if name != scene.background])
    return replace(scene, objects=tuple(moved), background=colour)


def focal(scene: Scene, kinds: int, seed: int, index: int) -> Scene:
    """What captions tell of: so many kinds of things of the scene, all of each, drawn; the rest goes unmentioned."""
    names = list(scene.counts())
    named = Draws("mentioned", seed, index).sample(names, min(kinds, len(names)))
    return replace(scene, objects=tuple(item for item in scene.objects if item.thing in named))


def shortened(text: str, language: str, share: float, *key: int | str) -> str:
    """The text without a drawn share of its words, of its characters in Chinese and Japanese; one stays at least."""
    apart = "" if language in ("zh", "ja") else " "
    words = list(text) if not apart else text.split(apart)
    draw = Draws("dropped", *key)
    numbers = [draw.number() for _ in words]
    left = [word for word, number in zip(words, numbers, strict=True) if number >= share]
    return apart.join(left or [words[numbers.index(max(numbers))]])
