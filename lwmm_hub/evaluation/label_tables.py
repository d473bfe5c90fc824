"""Classes of the data sets, as tables: facts only; `label_spaces` reads them.

Sources: Cityscapes' own scripts; SYNTHIA-RAND-CITYSCAPES' read-me; GTA5, whose files hold the ids
of Cityscapes; Mapillary Vistas' config files v1.2 and v2.0; ADE20K's SceneParsing list
(objectInfo150); COCO's panoptic categories; SegNet's CamVid; the development kit of Pascal VOC;
LoveDA's read-me. Names are those that published models carry in `id2label`.

A class is written `name rrggbb`, the colour as overlays draw it; `*` marks a thing (countable).
Wrapped text, since one class a line would be six hundred lines.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """One data set's classes.

    Attributes:
        classes: `name rrggbb; *name rrggbb; ...` in label order.
        ids: what the label files hold for each class; None for 0, 1, 2, ...
        void: what they hold where nothing is labelled, or what is not scored; 255 always is.
        things: whether `*` was set; False where the data set alone knows its things.
    """

    classes: str
    ids: tuple[int, ...] | None = None
    void: tuple[int, ...] = ()
    things: bool = True


_CITYSCAPES_34 = """
unlabeled 000000; ego vehicle 000000; rectification border 000000; out of roi 000000;
static 000000; dynamic 6f4a00; ground 510051; road 804080; sidewalk f423e8; parking faaaa0;
rail track e6968c; building 464646; wall 66669c; fence be9999; guard rail b4a5b4; bridge 966464;
tunnel 96785a; pole 999999; polegroup 999999; traffic light faaa1e; traffic sign dcdc00;
vegetation 6b8e23; terrain 98fb98; sky 4682b4; *person dc143c; *rider ff0000; *car 00008e;
*truck 000046; *bus 003c64; *caravan 00005a; *trailer 00006e; *train 005064; *motorcycle 0000e6;
*bicycle 770b20
"""

# Cityscapes' train ids -> ids.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

_MAPILLARY_65 = """
*Bird a52a2a; *Ground Animal 00c000; Curb c4c4c4; Fence be9999; Guard Rail b4a5b4; Barrier 5a7896;
Wall 66669c; Bike Lane 8040ff; *Crosswalk - Plain 8c8cc8; Curb Cut aaaaaa; Parking faaaa0;
Pedestrian Area 606060; Rail Track e6968c; Road 804080; Service Lane 6e6e6e; Sidewalk f423e8;
Bridge 966464; Building 464646; Tunnel 96785a; *Person dc143c; *Bicyclist ff0000;
*Motorcyclist ff0064; *Other Rider ff00c8; *Lane Marking - Crosswalk c88080;
Lane Marking - General ffffff; Mountain 40aa40; Sand e6a032; Sky 4682b4; Snow beffff;
Terrain 98fb98; Vegetation 6b8e23; Water 00aa1e; *Banner ffff80; *Bench fa001e; *Bike Rack 648cb4;
*Billboard dcdcdc; *Catch Basin dc8080; *CCTV Camera de2828; *Fire Hydrant 64aa1e;
*Junction Box 282828; *Mailbox 212121; *Manhole 6480a0; *Phone Booth 8e0000; Pothole 466496;
*Street Light d2aa64; *Pole 999999; *Traffic Sign Frame 808080; *Utility Pole 000050;
*Traffic Light faaa1e; *Traffic Sign (Back) c0c0c0; *Traffic Sign (Front) dcdc00;
*Trash Can 8c8c14; *Bicycle 770b20; *Boat 9600ff; *Bus 003c64; *Car 00008e; *Caravan 00005a;
*Motorcycle 0000e6; On Rails 005064; *Other Vehicle 804040; *Trailer 00006e; *Truck 000046;
*Wheeled Slow 0000c0; Car Mount 202020; Ego Vehicle 780a0a
"""

# No `*`: v2.0 keeps that in its panoptic_2020.json, which the reader asks.
_MAPILLARY_124 = """
Bird a52a2a; Ground Animal 00c000; Ambiguous Barrier faaa1f; Concrete Block faaa20; Curb c4c4c4;
Fence be9999; Guard Rail b4a5b4; Barrier 5a7896; Road Median faaa21; Road Side faaa22;
Lane Separator 808080; Temporary Barrier faaa23; Wall 66669c; Bike Lane 8040ff;
Crosswalk - Plain 8c8cc8; Curb Cut aaaaaa; Driveway faaa24; Parking faaaa0; Parking Aisle faaa25;
Pedestrian Area 606060; Rail Track e6968c; Road 804080; Road Shoulder 6e6e6e; Service Lane 6e6e6e;
Sidewalk f423e8; Traffic Island 80c480; Bridge 966464; Building 464646; Garage 969696;
Tunnel 96785a; Person dc143c; Person Group dc143c; Bicyclist ff0000; Motorcyclist ff0064;
Other Rider ff00c8; Lane Marking - Dashed Line ffffff; Lane Marking - Straight Line ffffff;
Lane Marking - Zigzag Line faaa1d; Lane Marking - Ambiguous faaa1c;
Lane Marking - Arrow (Left) faaa1a; Lane Marking - Arrow (Other) faaa19;
Lane Marking - Arrow (Right) faaa18; Lane Marking - Arrow (Split Left or Straight) faaa16;
Lane Marking - Arrow (Split Right or Straight) faaa15; Lane Marking - Arrow (Straight) faaa14;
Lane Marking - Crosswalk ffffff; Lane Marking - Give Way (Row) faaa13;
Lane Marking - Give Way (Single) faaa12; Lane Marking - Hatched (Chevron) faaa0c;
Lane Marking - Hatched (Diagonal) faaa0b; Lane Marking - Other ffffff;
Lane Marking - Stop Line ffffff; Lane Marking - Symbol (Bicycle) faaa10;
Lane Marking - Symbol (Other) faaa0f; Lane Marking - Text faaa0f;
Lane Marking (only) - Dashed Line ffffff; Lane Marking (only) - Crosswalk ffffff;
Lane Marking (only) - Other ffffff; Lane Marking (only) - Text ffffff; Mountain 40aa40;
Sand e6a032; Sky 4682b4; Snow beffff; Terrain 98fb98; Vegetation 6b8e23; Water 00aa1e;
Banner ffff80; Bench fa001e; Bike Rack 648cb4; Catch Basin dc8080; CCTV Camera de2828;
Fire Hydrant 64aa1e; Junction Box 282828; Mailbox 212121; Manhole 6480a0; Parking Meter 1414ff;
Phone Booth 8e0000; Pothole 466496; Signage - Advertisement faab1e; Signage - Ambiguous faac1e;
Signage - Back faad1e; Signage - Information faae1e; Signage - Other faaf1e;
Signage - Store fab01e; Street Light d2aa64; Pole 999999; Pole Group 999999;
Traffic Sign Frame 808080; Utility Pole 000050; Traffic Cone d23c3c;
Traffic Light - General (Single) faaa1e; Traffic Light - Pedestrians faaa1e;
Traffic Light - General (Upright) faaa1e; Traffic Light - General (Horizontal) faaa1e;
Traffic Light - Cyclists faaa1e; Traffic Light - Other faaa1e; Traffic Sign - Ambiguous c0c0c0;
Traffic Sign (Back) c0c0c0; Traffic Sign - Direction (Back) c0c0c0;
Traffic Sign - Direction (Front) dcdc00; Traffic Sign (Front) dcdc00;
Traffic Sign - Parking 0000c4; Traffic Sign - Temporary (Back) c0c0c0;
Traffic Sign - Temporary (Front) dcdc00; Trash Can 8c8c14; Bicycle 770b20; Boat 9600ff;
Bus 003c64; Car 00008e; Caravan 00005a; Motorcycle 0000e6; On Rails 005064; Other Vehicle 804040;
Trailer 00006e; Truck 000046; Vehicle Group 00008e; Wheeled Slow 0000c0; Water Valve aaaaaa;
Car Mount 202020; Dynamic 6f4a00; Ego Vehicle 780a0a; Ground 510051; Static 6f6f00;
Unlabeled 000000
"""

_ADE20K_150 = """
wall 787878; building b47878; sky 06e6e6; floor 503232; tree 04c803; ceiling 787850; road 8c8c8c;
*bed cc05ff; *windowpane e6e6e6; grass 04fa07; *cabinet e005ff; sidewalk ebff07; *person 96053d;
earth 787846; *door 08ff33; *table ff0652; mountain 8fff8c; plant ccff04; *curtain ff3307;
*chair cc4603; *car 0066c8; water 3de6fa; *painting ff0633; *sofa 0b66ff; *shelf ff0747;
house ff09e0; sea 0907e6; *mirror dcdcdc; rug ff095c; field 7009ff; *armchair 08ffd6;
*seat 07ffe0; *fence ffb806; *desk 0aff47; rock ff290a; *wardrobe 07ffff; *lamp e0ff08;
*bathtub 6608ff; *railing ff3d06; *cushion ffc207; base ff7a08; *box 00ff14; *column ff0829;
*signboard ff0599; *chest of drawers 0633ff; *counter eb0cff; sand a09614; *sink 00a3ff;
skyscraper 8c8c8c; *fireplace fa0a0f; *refrigerator 14ff00; grandstand 1fff00; path ff1f00;
*stairs ffe000; runway 99ff00; *case 0000ff; *pool table ff4700; *pillow 00ebff;
*screen door 00adff; stairway 1f00ff; river 0bc8c8; bridge ff5200; *bookcase 00fff5; blind 003dff;
*coffee table 00ff70; *toilet 00ff85; *flower ff0000; *book ffa300; hill ff6600; *bench c2ff00;
*countertop 008fff; *stove 33ff00; *palm 0052ff; *kitchen island 00ff29; *computer 00ffad;
*swivel chair 0a00ff; *boat adff00; bar 00ff99; *arcade machine ff5c00; hovel ff00ff; *bus ff00f5;
*towel ff0066; *light ffad00; *truck ff0014; tower ffb8b8; *chandelier 001fff; *awning 00ff3d;
*streetlight 0047ff; *booth ff00cc; *television receiver 00ffc2; *airplane 00ff52;
dirt track 000aff; *apparel 0070ff; *pole 3300ff; land 00c2ff; *bannister 007aff;
escalator 00ffa3; *ottoman ff9900; *bottle 00ff0a; buffet ff7000; poster 8fff00; stage 5200ff;
*van a3ff00; *ship ffeb00; *fountain 08b8aa; conveyer belt 8500ff; canopy 00ff5c; *washer b800ff;
*plaything ff001f; swimming pool 00b8ff; *stool 00d6ff; *barrel ff0070; *basket 5cff00;
waterfall 00e0ff; tent 70e0ff; *bag 46b8a0; *minibike a300ff; cradle 9900ff; *oven 47ff00;
*ball ff00a3; *food ffcc00; *step ff008f; tank 00ffeb; *trade name 85ff00; *microwave ff00eb;
*pot f500ff; *animal ff007a; *bicycle fff500; lake 0abed4; *dishwasher d6ff00; *screen 00ccff;
blanket 1400ff; *sculpture ffff00; *hood 0099ff; *sconce 0029ff; *vase 00ffcc;
*traffic light 2900ff; *tray 29ff00; *ashcan ad00ff; *fan 00f5ff; pier 4700ff; crt screen 7a00ff;
*plate 00ffb8; *monitor 005cff; *bulletin board b8ff00; shower 0085ff; *radiator ffd600;
*glass 19c2c2; *clock 66ff00; *flag 5c00ff
"""

_COCO_133 = """
*person dc143c; *bicycle 770b20; *car 00008e; *motorcycle 0000e6; *airplane 6a00e4; *bus 003c64;
*train 005064; *truck 000046; *boat 0000c0; *traffic light faaa1e; *fire hydrant 64aa1e;
*stop sign dcdc00; *parking meter af74af; *bench fa001e; *bird a52a2a; *cat ff4dff; *dog 00e2fc;
*horse b6b6ff; *sheep 005200; *cow 78a69d; *elephant 6e4c00; *bear ae39ff; *zebra c76400;
*giraffe 480076; *backpack ffb3f0; *umbrella 007d5c; *handbag d10097; *tie bcd0b6;
*suitcase 00dcb0; *frisbee ff63a4; *skis 5c0049; *snowboard 8581ff; *sports ball 4eb4ff;
*kite 00e400; *baseball bat aefff3; *baseball glove 2d59ff; *skateboard 868667; *surfboard 9194ae;
*tennis racket ffd0ba; *bottle c5e2ff; *wine glass ab8601; *cup 6d3f36; *fork cf8aff;
*knife 97005f; *spoon 09503d; *bowl 546933; *banana 4a4169; *apple a6c466; *sandwich d0c3d2;
*orange ff6d41; *broccoli 008f95; *carrot b300c2; *hot dog d1636a; *pizza 057900; *donut e3ffcd;
*cake 93bad0; *chair 994501; *couch 035fa1; *potted plant a3ff00; *bed 7700aa;
*dining table 00b6c7; *toilet 00a578; *tv b78258; *laptop 5f2000; *mouse 827287; *remote 6e8185;
*keyboard a64a76; *cell phone db8eb9; *microwave 4fd272; *oven b25a3e; *toaster 41460f;
*sink 7fa773; *refrigerator 3b696a; *book 8e6c2d; *clock c4ac00; *vase 5f3650; *scissors 804cff;
*teddy bear c93901; *hair drier f6007a; *toothbrush bfa2d0; banner ffff80; blanket 93d3cb;
bridge 966464; cardboard a8abac; counter 9270c6; curtain d2aa64; door-stuff 5c8859;
floor-wood da58b8; flower f18100; fruit d911ff; gravel 7c4ab5; house 464646; light ffe4ff;
mirror-stuff 9ad000; net c1005c; pillow 4c5b71; platform ffb4c3; playingfield 6a9ab0;
railroad e6968c; river 3c8fff; road 804080; roof 5c5237; sand fed47c; sea 494dae; shelf ffa062;
snow ffffff; stairs 68546d; tent a9a483; towel e1c7ff; wall-brick 89364a; wall-stone 879edf;
wall-tile 07f6e7; wall-wood 6bffc8; water-other 3a2995; window-blind b7798e; window-other ff4961;
tree-merged 6b8e23; fence-merged be9999; ceiling-merged 928b8d; sky-other-merged 4682b4;
cabinet-merged 86c79c; table-merged d1e28c; floor-other-merged 60246c; pavement-merged 606060;
mountain-merged 40aa40; grass-merged 98fb98; dirt-merged d0e5e4; paper-merged cebaab;
food-other-merged 98a140; building-other-merged 747000; rock-merged 00728f;
wall-other-merged 66669c; rug-merged fa8dff
"""

_COCO_IDS = """
1 2 3 4 5 6 7 8 9 10 11 13 14 15 16 17 18 19 20 21 22 23 24 25 27 28 31 32 33 34 35 36 37 38 39 40
41 42 43 44 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 67 70 72 73 74 75 76 77 78
79 80 81 82 84 85 86 87 88 89 90 92 93 95 100 107 109 112 118 119 122 125 128 130 133 138 141 144
145 147 148 149 151 154 155 156 159 161 166 168 171 175 176 177 178 180 181 184 185 186 187 188
189 190 191 192 193 194 195 196 197 198 199 200
"""

_CAMVID_11 = """
sky 808080; building 800000; pole c0c080; road 804080; pavement 0000c0; tree 808000;
signsymbol c08080; fence 404080; car 400080; pedestrian 404000; bicyclist 0080c0
"""

# Colours of the palette that the label files themselves have.
_PASCAL_VOC_21 = """
background 000000; *aeroplane 800000; *bicycle 008000; *bird 808000; *boat 000080; *bottle 800080;
*bus 008080; *car 808080; *cat 400000; *chair c00000; *cow 408000; *diningtable c08000;
*dog 400080; *horse c00080; *motorbike 408080; *person c08080; *pottedplant 004000; *sheep 804000;
*sofa 00c000; *train 80c000; *tvmonitor 004080
"""

_LOVEDA_7 = """
background ffffff; building ff0000; road ffff00; water 0000ff; barren 9f81b7; forest 00ff00;
agricultural ffc380
"""

# Cityscapes' classes in the order of its train ids, by what they are called there.
_CITYSCAPES_19 = """
road 804080; sidewalk f423e8; building 464646; wall 66669c; fence be9999; pole 999999;
traffic light faaa1e; traffic sign dcdc00; vegetation 6b8e23; terrain 98fb98; sky 4682b4;
*person dc143c; *rider ff0000; *car 00008e; *truck 000046; *bus 003c64; *train 005064;
*motorcycle 0000e6; *bicycle 770b20
"""
_SYNTHIA_16 = """
road 804080; sidewalk f423e8; building 464646; wall 66669c; fence be9999; pole 999999;
traffic light faaa1e; traffic sign dcdc00; vegetation 6b8e23; sky 4682b4; *person dc143c;
*rider ff0000; *car 00008e; *bus 003c64; *motorcycle 0000e6; *bicycle 770b20
"""
_SYNTHIA_13 = """
road 804080; sidewalk f423e8; building 464646; traffic light faaa1e; traffic sign dcdc00;
vegetation 6b8e23; sky 4682b4; *person dc143c; *rider ff0000; *car 00008e; *bus 003c64;
*motorcycle 0000e6; *bicycle 770b20
"""
_NOT_IN_19 = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)

TABLES = {
    "cityscapes-19": Table(_CITYSCAPES_19),
    "cityscapes-34": Table(_CITYSCAPES_34),
    # 34 is the number plate, which Cityscapes calls -1
    "gta-19": Table(_CITYSCAPES_19, _CITYSCAPES_IDS, (*_NOT_IN_19, 34)),
    # void, parking slot, road work, terrain, truck, train, lane marking: no class of the 16
    "synthia-16": Table(
        _SYNTHIA_16,
        (3, 4, 2, 21, 5, 7, 15, 9, 6, 1, 10, 17, 8, 19, 12, 11),
        (0, 13, 14, 16, 18, 20, 22),
    ),
    # and, of the 16, no wall, fence and pole
    "synthia-13": Table(
        _SYNTHIA_13,
        (3, 4, 2, 15, 9, 6, 1, 10, 17, 8, 19, 12, 11),
        (0, 5, 7, 13, 14, 16, 18, 20, 21, 22),
    ),
    "mapillary-65": Table(_MAPILLARY_65, void=(65,)),
    "mapillary-124": Table(_MAPILLARY_124, things=False),
    # 0 is "other": the convention that image processors call do_reduce_labels
    "ade20k-150": Table(_ADE20K_150, tuple(range(1, 151)), (0,)),
    "coco-133": Table(_COCO_133, tuple(map(int, _COCO_IDS.split())), (0,)),
    "camvid-11": Table(_CAMVID_11, void=(11,), things=False),
    # the border of every object is 255
    "pascal-voc-21": Table(_PASCAL_VOC_21),
    # 0 is where there is no picture
    "loveda-7": Table(_LOVEDA_7, tuple(range(1, 8)), (0,), things=False),
}

# Names of one and the same class, here and there; all spelled as `label_spaces.canonical` does.
SYNONYMS = (
    ("sidewalk", "pavement"),
    ("person", "pedestrian"),
    ("bicycle", "bike"),
    ("motorcycle", "motorbike"),
    ("traffic light", "trafficlight", "traffic signal"),
    ("traffic sign", "trafficsign"),
    ("airplane", "plane", "aeroplane"),
    ("television", "tv", "television receiver", "tvmonitor", "tv monitor"),
    ("couch", "sofa"),
    # Pascal VOC writes two words as one
    ("dining table", "diningtable"),
    ("potted plant", "pottedplant"),
    ("agricultural", "agriculture"),
    # ADE20K's first words, and the shorter names of its second list
    ("windowpane", "window"),
    ("bathtub", "tub"),
    ("railing", "rail"),
    ("street light", "streetlight", "street lamp"),
    ("apparel", "clothes"),
    ("swimming pool", "pool"),
    ("waterfall", "falls"),
    ("trash can", "ashcan"),
    # Mapillary v2.0 as some lists spell it
    ("lane marking only text", "lane marking only test"),
    # SegNet's CamVid elsewhere
    ("signsymbol", "sign symbol"),
    ("bicyclist", "bicyclists"),
    ("unlabelled", "unlabeled"),
)

_LANE_MARKINGS = tuple(
    entry.strip().rpartition(" ")[0]
    for entry in _MAPILLARY_124.split(";")
    if entry.strip().startswith("Lane Marking")
)

# Classes of one space that another one calls otherwise; what is not here goes by its name.
MAPS: dict[tuple[str, str], dict[str, str]] = {
    # The map that ../data/camvid states; CamVid has no wall, terrain or rider of its own.
    ("cityscapes-19", "camvid-11"): {
        "wall": "building",
        "traffic light": "signsymbol",
        "traffic sign": "signsymbol",
        "vegetation": "tree",
        "terrain": "tree",
        "rider": "bicyclist",
        "truck": "car",
        "bus": "car",
        "train": "car",
        "motorcycle": "bicyclist",
        "bicycle": "bicyclist",
    },
    # As published domain-generalisation results have it (openseg's converter, taken over by Rein);
    # RobustNet's is narrower: it leaves out kerb cuts, areas, lanes, parking, frames and backs.
    ("mapillary-65", "cityscapes-19"): {
        "Curb": "sidewalk",
        "Curb Cut": "sidewalk",
        "Pedestrian Area": "sidewalk",
        "Bike Lane": "road",
        "Crosswalk - Plain": "road",
        "Parking": "road",
        "Service Lane": "road",
        "Lane Marking - Crosswalk": "road",
        "Lane Marking - General": "road",
        "Street Light": "pole",
        "Utility Pole": "pole",
        "Traffic Sign Frame": "traffic sign",
        "Traffic Sign (Back)": "traffic sign",
        "Traffic Sign (Front)": "traffic sign",
        "Bicyclist": "rider",
        "Motorcyclist": "rider",
        "Other Rider": "rider",
        "On Rails": "train",
    },
    # A class of v2.0 goes where the class of v1.2 went that it was split from.
    ("mapillary-124", "cityscapes-19"): {
        "Curb": "sidewalk",
        "Curb Cut": "sidewalk",
        "Pedestrian Area": "sidewalk",
        "Bike Lane": "road",
        "Crosswalk - Plain": "road",
        "Parking": "road",
        "Parking Aisle": "road",
        "Service Lane": "road",
        **dict.fromkeys(_LANE_MARKINGS, "road"),
        "Street Light": "pole",
        "Utility Pole": "pole",
        "Traffic Light - General (Single)": "traffic light",
        "Traffic Light - Pedestrians": "traffic light",
        "Traffic Light - General (Upright)": "traffic light",
        "Traffic Light - General (Horizontal)": "traffic light",
        "Traffic Light - Cyclists": "traffic light",
        "Traffic Light - Other": "traffic light",
        "Traffic Sign Frame": "traffic sign",
        "Traffic Sign - Ambiguous": "traffic sign",
        "Traffic Sign (Back)": "traffic sign",
        "Traffic Sign - Direction (Back)": "traffic sign",
        "Traffic Sign - Direction (Front)": "traffic sign",
        "Traffic Sign (Front)": "traffic sign",
        "Traffic Sign - Parking": "traffic sign",
        "Traffic Sign - Temporary (Back)": "traffic sign",
        "Traffic Sign - Temporary (Front)": "traffic sign",
        "Person Group": "person",
        "Bicyclist": "rider",
        "Motorcyclist": "rider",
        "Other Rider": "rider",
        "On Rails": "train",
    },
}
