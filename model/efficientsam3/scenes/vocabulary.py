"""Which pictures are concepts, what a person would call them, and which words are true of them.

Hand-written tables over the pictures' short names (CLDR's, in small letters). Names are separated
by commas. Scenes turn and mirror pictures, so nothing here is told apart by its direction.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(w for w in (" ".join(w.split()) for w in text.split(",")) if w)


DROPPED_SUBGROUPS = _words(
    """
    family, skin-tone, hair-style, alphanum, arrow, av-symbol, currency, gender, keycap, math,
    other-symbol, punctuation, religion, transport-sign, warning, zodiac
"""
)
"""Signs and letters rather than things; of these only what ``KEPT`` names."""

KEPT = _words(
    """
    woman and man holding hands, kiss, couple with heart, plus, infinity, recycling symbol,
    fleur-de-lis, trident emblem, check mark, cross mark, red question mark, red exclamation
    mark, atom symbol, star of david, wheel of dharma, yin yang, latin cross, orthodox cross,
    star and crescent, peace symbol, menorah, litter in bin sign, wheelchair symbol, warning, no
    entry, prohibited, no smoking, radioactive, biohazard, medical symbol, right arrow,
    eight-pointed star, name badge, japanese symbol for beginner, heavy dollar sign
"""
)

DROPPED = _words(
    """
    envelope with arrow, incoming envelope, e-mail, outbox tray, closed mailbox with lowered
    flag, open mailbox with raised flag, open mailbox with lowered flag, speaker medium volume,
    speaker high volume, magnifying glass tilted right, globe showing americas, globe showing
    asia-australia, hourglass not done, chart decreasing, thumbs down, upside-down face,
    left-facing fist, right-facing fist, raised back of hand, rightwards hand, leftwards hand,
    palm up hand, palm down hand, leftwards pushing hand, rightwards pushing hand, backhand
    index pointing left, backhand index pointing right, backhand index pointing down, waxing
    crescent moon, waxing gibbous moon, waning gibbous moon, last quarter moon, waning crescent
    moon, last quarter moon face, airplane arrival, right anger bubble, left speech bubble,
    person, child, person: beard, woman: beard, person: red hair, person: bald, person: curly
    hair, person: white hair, person: blond hair, older person, woman: bald, black medium
    square, white medium square, black medium-small square, white medium-small square, black
    small square, white small square, small orange diamond, small blue diamond, red triangle
    pointed down, radio button, white square button, black square button, frowning face with
    open mouth, slightly frowning face, smiling face, kissing face with smiling eyes, umbrella
    with rain drops, sun behind small cloud, sun behind large cloud, busts in silhouette,
    calendar, snowman without snow, card index dividers, spiral calendar, bookmark tabs, page
    with curl, mobile phone with arrow, locked with pen, locked with key, zzz, anger symbol,
    dashing away, hole, sweat droplets, eye in speech bubble, index pointing at the viewer,
    dotted line face, head shaking vertically, head shaking horizontally, foggy, fog, cityscape
    at dusk, night with stars, mx claus, person in bed, person taking bath, hot springs, yen
    banknote, pound banknote, euro banknote, bullet train, tram car, railway car, aerial
    tramway, suspension railway, fast up button, round pushpin, passenger ship, two-hump camel,
    desert island, field hockey
"""
)
"""
        Shown by another concept already, or told apart only by direction or by a detail.
    """

RENAMED = {
    "automobile": "car",
    "oncoming automobile": "oncoming car",
    "small airplane": "light aircraft",
    "sport utility vehicle": "suv",
    "cooking": "fried egg",
    "hot beverage": "cup of coffee",
    "teacup without handle": "cup of tea",
    "pool 8 ball": "eight ball",
    "closed mailbox with raised flag": "mailbox",
    "speaker low volume": "speaker",
    "magnifying glass tilted left": "magnifying glass",
    "globe showing europe-africa": "globe",
    "hourglass done": "hourglass",
    "chart increasing": "line chart",
    "backhand index pointing up": "pointing hand",
    "index pointing up": "raised index finger",
    "first quarter moon": "half moon",
    "first quarter moon face": "crescent moon face",
    "airplane departure": "airplane taking off",
    "locked": "closed padlock",
    "unlocked": "open padlock",
    "twelve o'clock": "clock",
    "woman and man holding hands": "couple holding hands",
    "kiss": "couple kissing",
    "plus": "plus sign",
    "infinity": "infinity sign",
    "trident emblem": "trident",
    "red question mark": "question mark",
    "red exclamation mark": "exclamation mark",
    "latin cross": "cross",
    "warning": "warning sign",
    "no entry": "no entry sign",
    "prohibited": "prohibition sign",
    "no smoking": "no smoking sign",
    "radioactive": "radioactive sign",
    "biohazard": "biohazard sign",
    "right arrow": "arrow",
    "heavy dollar sign": "dollar sign",
    "red triangle pointed up": "red triangle",
    "black large square": "black square",
    "white large square": "white square",
    "large orange diamond": "orange diamond",
    "large blue diamond": "blue diamond",
    "construction": "construction barrier",
    "high voltage": "lightning bolt",
    "brick": "stack of bricks",
    "wood": "logs",
    "closed book": "book",
    "mouth": "lips",
    "collision": "explosion",
    "hundred points": "hundred points symbol",
    "man: beard": "bearded man",
    "man: red hair": "man with red hair",
    "man: curly hair": "man with curly hair",
    "man: white hair": "man with white hair",
    "man: bald": "bald man",
    "man: blond hair": "blond man",
    "woman: red hair": "woman with red hair",
    "woman: curly hair": "woman with curly hair",
    "woman: white hair": "woman with white hair",
    "woman: blond hair": "blond woman",
    "ear of corn": "corn",
    "sheaf of rice": "rice plant",
    "kiwi fruit": "kiwi",
    "mate": "mate drink",
    "ewe": "sheep",
    "thong sandal": "flip-flop",
    "joker": "joker card",
    "mahjong red dragon": "mahjong tile",
    "black nib": "fountain pen nib",
    "lady beetle": "ladybug",
    "spiral shell": "seashell",
    "cricket game": "cricket bat and ball",
    "ping pong": "table tennis paddle",
    "badminton": "badminton racquet",
    "tennis": "tennis racquet",
    "lacrosse": "lacrosse stick",
    "ice hockey": "ice hockey stick",
    "dizzy": "dizzy star",
    "locomotive": "steam locomotive",
    "metro": "metro train",
    "light rail": "light rail train",
    "mountain railway": "mountain train",
    "bust in silhouette": "silhouette of a person",
    "breast-feeding": "woman breast-feeding",
    "selfie": "hand taking a selfie",
    "couch and lamp": "couch",
    "computer disk": "minidisc",
    "bell with slash": "crossed-out bell",
    "musical keyboard": "piano keyboard",
    "link": "chain link",
    "cinema": "cinema sign",
    "wedding": "wedding chapel",
    "satellite antenna": "satellite dish",
    "fork and knife with plate": "plate with fork and knife",
    "beverage box": "juice box",
    "bottle with popping cork": "champagne bottle",
    "shallow pan of food": "paella",
    "pot of food": "pot of stew",
    "steaming bowl": "bowl of ramen",
    "water wave": "wave",
}

FALSE_SYNONYMS = _words(
    """
    flags, hankey, shit, memo, rice scene, shell, mag, red car, blue car, spock-hand, calling,
    feet, flipper, compression, cop, hocho, izakaya lantern, moyai, man with gua pi mao,
    trolleybus, person with headscarf, stars, loop, date, mega, postbox, cake, camel, sandal,
    boot, shoe, couple, racehorse, dolls, satisfied, imp, v, o, x, bow, no good, dragon, bamboo,
    information desk person, zap, clock12, oncoming, guardsman, man with turban, ok woman, space
    invader, japanese ogre, japanese goblin, city sunset, city sunrise, three button mouse,
    curry, helmet, ocean, fist, rage, sound, notes, bulb, lock, unlock, key, chart, email,
    hearts, diamonds, clubs, spades, white square, black circle, wave, massage, haircut, moon,
    punch, facepunch, bath, cooking, ramen, stew, champagne, probing cane, small red triangle,
    heavy dollar sign, arrow right, question, exclamation, man with beard, japan, dash, clap,
    train, art, iphone, computer, date, gun, house buildings, no entry sign, open book, apple,
    fries, star2, eye, pray, package, closed mailbox with raised flag, twelve o'clock, hourglass
    done, first quarter moon, first quarter moon face, first quarter moon with face, globe
    showing europe-africa, earth africa, speaker low volume, magnifying glass tilted left,
    backhand index pointing up, smoking, barber, birthday, office, construction, warning,
    prohibited, brick, beginner, wedding, high voltage, lightning, football, sunny, kiss, point
    up, dancers, recycle, rotating light, walking, running, juggling, raising hand,
    breast-feeding, tada, dart, golf, mute, ear of rice, standing person, kneeling person, low
    battery, shower, dizzy, boom
"""
)
"""
        Short names that are odd, rude, or as true of other concepts.
    """

EXTRA_SYNONYMS = {
    "car": "automobile",
    "cup of coffee": "coffee",
    "cup of tea": "tea",
    "doughnut": "donut",
    "laptop": "laptop computer, notebook computer",
    "couch": "sofa",
    "airplane": "plane, aeroplane",
    "corn": "maize, ear of corn",
    "hamburger": "burger",
    "pile of poo": "poop",
    "french fries": "fries, chips",
    "mobile phone": "smartphone, cell phone",
    "television": "tv, tv set",
    "light bulb": "lightbulb",
    "necktie": "tie",
    "sailboat": "sailing boat",
    "bicycle": "bike",
    "motorcycle": "motorbike",
    "fire engine": "fire truck",
    "glasses": "eyeglasses, spectacles",
    "high-heeled shoe": "high heel",
    "crocodile": "alligator",
    "honeybee": "bee",
    "ladybug": "ladybird",
    "pizza": "slice of pizza",
    "explosion": "blast",
    "lightning bolt": "lightning",
    "water pistol": "water gun",
    "eggplant": "aubergine",
    "wrapped gift": "gift, present",
    "fox": "fox face",
    "panda": "panda face",
    "globe": "earth, planet earth",
    "lips": "mouth",
    "soccer ball": "football",
    "flying saucer": "ufo",
    "tangerine": "mandarin, orange fruit",
    "potted plant": "houseplant",
    "evergreen tree": "conifer, fir tree",
    "oyster": "shell with pearl",
    "seashell": "shell",
    "bow and arrow": "archery bow",
    "backpack": "rucksack, school bag",
    "magnifying glass": "magnifier",
    "wastebasket": "trash can",
}

# Words that are true of every concept of a subgroup, except ``NOT`` says otherwise.
OF_SUBGROUP = {
    "animal-amphibian": "animal, amphibian",
    "animal-bird": "animal, bird",
    "animal-bug": "animal, bug",
    "animal-mammal": "animal, mammal",
    "animal-marine": "animal, sea animal",
    "animal-reptile": "animal, reptile",
    "plant-flower": "plant, flower",
    "plant-other": "plant",
    "food-fruit": "food, fruit",
    "food-vegetable": "food, vegetable",
    "food-prepared": "food",
    "food-asian": "food",
    "food-sweet": "food, sweets",
    "drink": "drink",
    "musical-instrument": "musical instrument",
    "place-building": "building",
    "place-religious": "building",
    "award-medal": "medal",
    "person": "person",
    "person-activity": "person",
    "person-fantasy": "person",
    "person-gesture": "person",
    "person-resting": "person",
    "person-role": "person",
    "person-sport": "person",
    "hand-fingers-closed": "hand",
    "hand-fingers-open": "hand",
    "hand-fingers-partial": "hand",
    "hand-prop": "hand",
    "hand-single-finger": "hand",
    "hands": "hand",
    "body-parts": "body part",
    "cat-face": "cat, face, animal",
    "monkey-face": "monkey, animal",
    "face-affection": "face, smiley",
    "face-concerned": "face, smiley",
    "face-glasses": "face, smiley",
    "face-hand": "face, smiley",
    "face-hat": "face, smiley",
    "face-negative": "face, smiley",
    "face-neutral-skeptical": "face, smiley",
    "face-sleepy": "face, smiley",
    "face-smiling": "face, smiley",
    "face-tongue": "face, smiley",
    "face-unwell": "face, smiley",
    "heart": "heart",
}

NOT = {
    "animal": "feather, wing, paw prints, spider web, seashell, coral, microbe, pig nose",
    "bird": "feather, wing, phoenix",
    "bug": "snail, spider web, microbe, worm",
    "mammal": "paw prints, pig nose, unicorn",
    "sea animal": "seashell, coral",
    "reptile": "dragon, dragon face, sauropod, t-rex",
    "flower": "rosette",
    "plant": "rosette, bouquet, empty nest, nest with eggs, mushroom, fallen leaf, maple leaf, "
    "leaf fluttering in wind",
    "vegetable": "peanuts, chestnut, brown mushroom, beans",
    "fruit": "olive, tomato",
    "sweets": "pie, honey pot, custard",
    "drink": "baby bottle, teapot, ice, pouring liquid",
    "building": "rock, logs, stack of bricks, building construction, statue of liberty, kaaba",
    "medal": "trophy",
    "person": """
        silhouette of a person, speaking head, footprints, fingerprint, troll, people hugging
    """,
    "hand": "nail polish",
    "body part": "bone",
    "smiley": "skull, skull and crossbones",
    "heart": "love letter",
}

# Words that are true of the concepts named, whatever their subgroup.
WORDS = {
    "dog": "dog face, guide dog, service dog, poodle",
    "cat": "cat face, black cat",
    "horse": "horse face",
    "cow": "cow face",
    "pig": "pig face",
    "mouse": "mouse face",
    "rabbit": "rabbit face",
    "monkey": "monkey face",
    "dragon": "dragon face",
    "whale": "spouting whale",
    "bear": "polar bear",
    "tiger": "tiger face",
    "bird": "baby chick, hatching chick, front-facing baby chick",
    "chick": "baby chick, hatching chick, front-facing baby chick",
    "fish": "tropical fish, blowfish, shark",
    "insect": "butterfly, ant, honeybee, beetle, ladybug, cricket, cockroach, mosquito, fly",
    "dinosaur": "sauropod, t-rex",
    "shellfish": "crab, lobster, shrimp",
    "tree": """
        evergreen tree, deciduous tree, palm tree, leafless tree, christmas tree, tanabata tree
    """,
    "leaf": "maple leaf, fallen leaf",
    "mushroom": "brown mushroom",
    "apple": "red apple, green apple",
    "bread": "croissant, baguette bread, flatbread, bagel",
    "cake": "birthday cake, shortcake, cupcake",
    "ice cream": "soft ice cream",
    "meat": "meat on bone, poultry leg, cut of meat, bacon",
    "pepper": "hot pepper, bell pepper",
    "glass": "wine glass, cocktail glass, tumbler glass, glass of milk",
    "bottle": "baby bottle, champagne bottle, lotion bottle",
    "cup": "cup of coffee, cup of tea, cup with straw",
    "flower": "white flower",
    "vehicle": """
        car, oncoming car, suv, pickup truck, delivery truck, articulated lorry, tractor, racing
        car, motorcycle, motor scooter, auto rickshaw, bicycle, bus, oncoming bus, trolleybus,
        minibus, ambulance, fire engine, police car, oncoming police car, taxi, oncoming taxi,
        steam locomotive, high-speed train, train, metro train, light rail train, tram,
        monorail, mountain train, airplane, light aircraft, airplane taking off, helicopter,
        rocket, flying saucer, sailboat, canoe, speedboat, ferry, motor boat, ship, mountain
        cableway, sled, kick scooter
    """,
    "car": "oncoming car, suv, police car, oncoming police car, taxi, oncoming taxi, racing car",
    "taxi": "oncoming taxi",
    "police car": "oncoming police car",
    "bus": "oncoming bus, trolleybus, minibus",
    "truck": "pickup truck, delivery truck, articulated lorry, fire engine",
    "train": "steam locomotive, high-speed train, metro train, light rail train, mountain train, "
    "monorail, tram",
    "airplane": "light aircraft, airplane taking off",
    "aircraft": "airplane, light aircraft, airplane taking off, helicopter",
    "boat": "sailboat, canoe, speedboat, ferry, motor boat, ship",
    "wheelchair": "manual wheelchair, motorized wheelchair",
    "traffic light": "horizontal traffic light, vertical traffic light",
    "sign": """
        stop sign, warning sign, no entry sign, prohibition sign, no smoking sign, radioactive
        sign, biohazard sign, litter in bin sign
    """,
    "house": "derelict house, house with garden, houses, hut",
    "post office": "japanese post office",
    "castle": "japanese castle",
    "mountain": "snow-capped mountain, mount fuji, volcano",
    "tent": "circus tent",
    "moon": "full moon, half moon, crescent moon, full moon face, crescent moon face, new moon, "
    "new moon face",
    "sun": "sun with face",
    "star": "glowing star, shooting star, eight-pointed star",
    "cloud": """
        cloud with rain, cloud with snow, cloud with lightning, cloud with lightning and rain,
        sun behind cloud, sun behind rain cloud
    """,
    "umbrella": "closed umbrella, umbrella on ground",
    "clock": "alarm clock, mantelpiece clock, timer clock",
    "ball": """
        soccer ball, baseball, softball, basketball, volleyball, american football, rugby
        football, eight ball
    """,
    "sports equipment": """
        soccer ball, baseball, softball, basketball, volleyball, american football, rugby
        football, tennis racquet, flying disc, bowling, cricket bat and ball, ice hockey stick,
        lacrosse stick, table tennis paddle, badminton racquet, boxing glove, goal net, ice
        skate, skis, sled, curling stone
    """,
    "playing card": "joker card",
    "doll": "nesting dolls, japanese dolls",
    "toy": "teddy bear, yo-yo, kite, nesting dolls, water pistol",
    "ticket": "admission tickets",
    "gift": "wrapped gift",
    "book": "open book, green book, blue book, orange book, notebook with decorative cover, "
    "notebook, ledger",
    "newspaper": "rolled-up newspaper",
    "clothing": """
        t-shirt, jeans, scarf, gloves, coat, socks, dress, kimono, sari, lab coat, one-piece
        swimsuit, briefs, shorts, bikini, woman's clothes, safety vest, necktie, running shirt,
        martial arts uniform
    """,
    "shoe": """
        man's shoe, running shoe, hiking boot, flat shoe, high-heeled shoe, woman's sandal,
        ballet shoes, woman's boot
    """,
    "boot": "hiking boot, woman's boot",
    "footwear": """
        man's shoe, running shoe, hiking boot, flat shoe, high-heeled shoe, woman's sandal,
        ballet shoes, woman's boot, flip-flop
    """,
    "hat": "woman's hat, top hat, graduation cap, billed cap",
    "helmet": "military helmet, rescue worker's helmet",
    "bag": "purse, handbag, clutch bag, shopping bags, backpack, money bag",
    "glasses": "sunglasses",
    "jewelry": "ring, crown, prayer beads",
    "computer": "laptop, desktop computer",
    "disc": "optical disk, dvd",
    "phone": "mobile phone, telephone, telephone receiver",
    "camera": "camera with flash, movie camera, video camera",
    "lamp": "diya lamp, red paper lantern, light bulb, flashlight",
    "key": "old key",
    "padlock": "closed padlock, open padlock",
    "envelope": "love letter, red envelope",
    "furniture": "bed, couch, chair",
    "money": "coin, dollar banknote, money bag, money with wings",
    "chart": "line chart, bar chart, chart increasing with yen",
    "folder": "file folder, open file folder",
    "ruler": "straight ruler, triangular ruler",
    "paperclip": "linked paperclips",
    "pen": "fountain pen",
    "tool": """
        hammer, axe, pick, hammer and pick, hammer and wrench, carpentry saw, wrench,
        screwdriver, clamp, shovel, ladder, nut and bolt
    """,
    "hammer": "hammer and pick, hammer and wrench",
    "weapon": "dagger, crossed swords, bow and arrow, bomb",
    "knife": "kitchen knife, dagger",
    "sword": "crossed swords",
    "drum": "long drum",
    "guitar": "banjo",
    "microphone": "studio microphone",
    "musical note": "musical notes",
    "bell": "bellhop bell",
    "medal": "military medal, sports medal",
    "circle": """
        red circle, orange circle, yellow circle, green circle, blue circle, purple circle,
        brown circle, black circle, white circle
    """,
    "square": """
        red square, orange square, yellow square, green square, blue square, purple square,
        brown square, black square, white square
    """,
    "diamond": "orange diamond, blue diamond, diamond with a dot",
    "triangle": "red triangle",
    "cross": "orthodox cross",
    "heart": "heart suit",
    "speech bubble": "speech balloon",
    "baby": "baby angel",
    "couple": "couple holding hands, couple kissing, couple with heart",
    "man": """
        bearded man, man with red hair, man with curly hair, man with white hair, bald man,
        blond man, old man, santa claus, prince, merman
    """,
    "woman": """
        woman with red hair, woman with curly hair, woman with white hair, blond woman, old
        woman, mrs. claus, princess, mermaid, pregnant woman
    """,
    "monster": "ogre, goblin, alien monster",
}

LOOKALIKES = """
    snail, seashell; mouse, rat; leopard, tiger; ox, water buffalo, bison, cow; frog, turtle;
    whale, spouting whale; lemon, lime, mango; tangerine, peach; blossom, cherry blossom,
    hibiscus, white flower; rosette, white flower; ship, ferry, motor boat, speedboat; goggles,
    diving mask; bento box, takeout box; glass of milk, tumbler glass; wine glass, clinking
    glasses; beer mug, clinking beer mugs; globe, globe with
    meridians; full moon, new moon, moon; bell, bellhop bell; honeybee, fly; ghost, alien; boar,
    pig; camera, camera with flash; headphone, stethoscope; spaghetti, bowl of ramen; bug, worm;
    ram, goat, sheep; guitar, banjo, violin; baseball, softball; pretzel, knot; house, houses;
    eye, eyes; star, glowing star; sparkles, star; gorilla, orangutan;
    baby, boy, girl; chick, bird; speech balloon, thought balloon; snowflake, sparkles;
    wave, droplet; hamster, mouse face;
    rocket, airplane; department store, office building, hotel, hospital, school, bank; ogre,
    goblin; cooked rice, rice ball; potato, roasted sweet potato; wine glass, cocktail glass;
    smiling face with horns, angry face with horns; superhero, supervillain; mage, fairy; judge,
    student; doughnut, bagel; hiking boot, woman's boot; book, notebook; notebook, notebook with
    decorative cover, ledger; coin, sports medal; scroll, page facing up; man frowning, man
    pouting; woman frowning, woman pouting; person frowning, person pouting; man's shoe, flat
    shoe; purse, handbag, clutch bag
"""
"""Groups told apart so hardly that one is no fair negative where another is shown."""

PARTS = {
    "bridge at night": "star, crescent moon, full moon",
    "camping": "tent, evergreen tree, deciduous tree",
    "beach with umbrella": "umbrella, umbrella on ground",
    "sunrise over mountains": "sun, mountain, snow-capped mountain",
    "sunrise": "sun",
    "sunset": "sun, office building",
    "national park": "evergreen tree, deciduous tree, mountain",
    "desert": "cactus, sun",
    "moon viewing ceremony": "full moon",
    "cityscape": "office building",
    "framed picture": "mountain, sun, snow-capped mountain",
    "house with garden": "deciduous tree, evergreen tree",
    "milky way": "star, sparkles",
    "star and crescent": "star, crescent moon",
    "dizzy star": "star",
    "star-struck": "star",
    "christmas tree": "star, glowing star",
    "sun behind cloud": "sun, cloud",
    "sun behind rain cloud": "sun, cloud, droplet",
    "cloud with rain": "droplet",
    "cloud with snow": "snowflake",
    "cloud with lightning": "lightning bolt",
    "cloud with lightning and rain": "lightning bolt, droplet",
    "face in clouds": "cloud",
    "rainbow": "cloud",
    "snowman": "snowflake, top hat",
    "couple holding hands": "man, woman",
    "couple kissing": "red heart, man, woman",
    "couple with heart": "red heart, man, woman",
    "family": "man, woman, boy, girl, baby",
    "love letter": "red heart, envelope",
    "love hotel": "red heart, hotel",
    "wedding chapel": "red heart, church",
    "heart with arrow": "arrow, red heart",
    "heart with ribbon": "ribbon, red heart",
    "heart on fire": "fire, red heart",
    "sparkling heart": "sparkles, star",
    "smiling face with hearts": "red heart",
    "smiling face with heart-eyes": "red heart",
    "smiling cat with heart-eyes": "red heart",
    "face blowing a kiss": "red heart",
    "heart hands": "red heart",
    "smiling face with sunglasses": "sunglasses",
    "nerd face": "glasses",
    "disguised face": "glasses",
    "cowboy hat face": "woman's hat",
    "face with thermometer": "thermometer",
    "money-mouth face": "dollar sign",
    "partying face": "party popper",
    "skull and crossbones": "skull, bone",
    "detective": "magnifying glass",
    "man detective": "magnifying glass",
    "woman detective": "magnifying glass",
    "person biking": "bicycle",
    "man biking": "bicycle",
    "woman biking": "bicycle",
    "person mountain biking": "bicycle",
    "man mountain biking": "bicycle",
    "woman mountain biking": "bicycle",
    "person rowing boat": "canoe",
    "man rowing boat": "canoe",
    "woman rowing boat": "canoe",
    "person golfing": "flag in hole",
    "person bouncing ball": "basketball",
    "man bouncing ball": "basketball",
    "woman bouncing ball": "basketball",
    "skier": "skis",
    "horse racing": "horse, horse face",
    "carousel horse": "horse, horse face",
    "teacher": "book",
    "man teacher": "book",
    "woman teacher": "book",
    "artist": "artist palette, paintbrush",
    "man artist": "artist palette, paintbrush",
    "woman artist": "artist palette, paintbrush",
    "singer": "microphone",
    "man singer": "microphone",
    "woman singer": "microphone",
    "technologist": "laptop",
    "man technologist": "laptop",
    "woman technologist": "laptop",
    "person feeding baby": "baby, baby bottle",
    "man feeding baby": "baby, baby bottle",
    "woman feeding baby": "baby, baby bottle",
    "woman breast-feeding": "baby",
    "hand taking a selfie": "mobile phone",
    "writing hand": "pen, pencil",
    "hatching chick": "egg",
    "nest with eggs": "egg, empty nest",
    "fried egg": "egg",
    "bowl of ramen": "chopsticks, egg",
    "plate with fork and knife": "fork and knife, kitchen knife",
    "bowl with spoon": "spoon",
    "honey pot": "jar",
    "bouquet": "rose, tulip, blossom",
    "fishing pole": "fish",
    "mouse trap": "mouse, cheese wedge",
    "money bag": "dollar sign",
    "bank": "dollar sign",
    "hospital": "cross, plus sign",
    "school": "clock",
    "church": "cross",
    "musical notes": "musical note",
    "musical score": "musical note",
    "bow and arrow": "arrow",
    "hammer and pick": "pick",
    "hammer and wrench": "wrench",
    "broken chain": "chains, chain link",
    "no smoking sign": "cigarette",
    "crossed-out bell": "bell",
    "muted speaker": "speaker",
    "rescue worker's helmet": "cross, plus sign",
    "wrapped gift": "ribbon",
    "couch": "flashlight",
    "slot machine": "cherries",
    "memo": "pencil",
    "spider web": "spider",
    "carp streamer": "fish",
    "nesting dolls": "japanese dolls",
}
"""What else is to be seen in a picture: no fair negative where that is shown."""


def confusable(name: str) -> set[str]:
    """Names that are no fair negatives where a concept is shown; itself may be among them."""
    found = set(_words(PARTS.get(name, "")))
    for group in LOOKALIKES.split(";"):
        names = _words(group)
        found |= names if name in names else frozenset()
    return found


def words_of(name: str, subgroup: str) -> tuple[str, ...]:
    """
    The category words that are true of a concept, general ones last; never its own name.
    """
    found = [word for word, names in _BY_WORD.items() if name in names]
    for word in reversed(OF_SUBGROUP.get(subgroup, "").split(", ")):
        if word and word not in found and name not in _NOT.get(word, ()):
            found.append(word)
    if "person" in found:
        first = name.split()[0]
        found[:0] = [first] if first in ("man", "woman") and first not in found else []
    return tuple(w for w in found if w != name)


_BY_WORD = {word: _words(names) for word, names in WORDS.items()}
_NOT = {word: _words(names) for word, names in NOT.items()}
