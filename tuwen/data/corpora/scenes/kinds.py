"""Words that leave open which thing is meant ("bird", 鸟), so that a translator must look at the picture."""

from tuwen.data.corpora.scenes.things import THINGS, Thing

# English, plural, Chinese, measure word: the things it may mean
_TABLE = """
animal,animals,动物,只: dog/cat/monkey/fox/lion/tiger/horse/zebra/deer/cow/pig/sheep/camel/giraffe/elephant/mouse
animal,animals,动物,只: rabbit/hedgehog/bat/koala/panda/kangaroo/frog/crocodile/turtle/snake/dinosaur/unicorn
bird,birds,鸟,只: rooster/penguin/duck/swan/owl/flamingo/peacock/parrot
sea creature,sea creatures,海洋生物,只: whale/dolphin/shark/octopus/crab/lobster
bug,bugs,虫子,只: snail/butterfly/bee/ladybug/spider
plant,plants,植物,棵: rose/sunflower/tulip/cactus/palm tree/mushroom/maple leaf
food,foods,食物,个: tangerine/lemon/banana/pineapple/apple/pear/strawberry/tomato/avocado/eggplant/carrot/onion
food,foods,食物,个: croissant/hamburger/hot dog/doughnut/birthday cake/lollipop
vehicle,vehicles,交通工具,辆: car/bus/ambulance/fire engine/tractor/motorcycle/bicycle/train/airplane/rocket/sailboat
vehicle,vehicles,交通工具,辆: skateboard
instrument,instruments,乐器,把: guitar/violin/trumpet/drum
ball,balls,球,个: soccer ball/basketball
garment,garments,衣物,件: crown/top hat/T-shirt/dress
tool,tools,工具,把: key/hammer/axe/magnet/pencil
appliance,appliances,电器,台: alarm clock/light bulb/camera/television/phone
building,buildings,建筑,座: house/castle
"""


def _rows():
    for row in _TABLE.strip().splitlines():
        words, _, members = row.partition(": ")
        name, plural, chinese, measure = words.split(",")
        yield Thing(name, plural, "", chinese, measure), members.split("/")


KINDS: dict[str, tuple[str, ...]] = {}  # English word: the things it may mean
for _kind, _members in _rows():
    KINDS[_kind.name] = (*KINDS.get(_kind.name, ()), *_members)

# how each thing is called where it is left open which one is meant; what has no such word keeps its name
OPEN_NAMES: dict[str, Thing] = THINGS | {member: kind for kind, members in _rows() for member in members}
