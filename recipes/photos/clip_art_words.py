"""Words that names of clip art are made of. The files are named by hundreds of people, title and artist run together:
only what is listed here is taken for a part of a title."""

from __future__ import annotations

NOUNS = frozenset("""
abacus accordion acorn airbrush aircraft airplane alien ambulance anchor angel angelfish ant antenna anvil ape apple
armadillo arrow axe baboon baby backpacker bacon badge bag ball ballerina balloon balloons bamboo banana bananas barrel
baseball basket basketball bat battery beach beachball beagle bear beaver bed bee beer bell bible bicycle bike binoculars bird
bishop bison blazer boat bomb book books boombox boomerang bottle bouquet bow bowl box boy brain bread brick bride
bridge broom brush bucket bug bulb bull bulldog bunny burger burner burrito bus butter butterfly button cactus cage
cake calculator camcorder camel camera camper candle candy cane cannon canoe cap car cardboard caribou carrot cart castle
cat caterpillar cattle cello certificate chain chair cheese cheetah chef cherries cherry chick chicken chip chipmunk
church cichlid clip clipboard clock cloud clown coat cob cobra cocktail coffee cog coin compass computer cone cookie
cork cormorant couch cow crab crane crawfish crayon croissant crow crown crystal cube cup cupcake daffodil daisy
damselfly dancer dartboard deer desk desktop diary dice dinosaur diode disc dog dolphin donkey door dove dragon
dragonfly drawbridge dress drill drop drum drums duck dulcimer eagle ear earring echidna egg eggs elephant elevator
engine envelope eraser evergreen eye eyes factory farmer fawn feather fedora fern fingerprint fire fireman fireworks
fish flag flamingo flask flower flowers flute fly folder fondue food football footprint fork fox fries frog fruit
gallows gallstone garlic geranium ghost gift giraffe girl glass glasses glove goat golf gorilla grape grapes grasshopper
grenade guitar gull gun hamburger hammer hamster hand hands handshake harp hat head headphones heart helicopter helix helmet hippo
hippopotamus horn horse house hourglass hummer igloo iris iron jacket jar jellyfish joker jug juice jukebox kangaroo
kettle key keyboard keys king kite knife knight ladder ladybug lamp laptop leaf leaves lemon lemonade library lighter
lighthouse lightning lily lime lion lips lizard llama lobster lock lollipop longsword lotion magnet magnolia mailbox
man maracas mars marshmallow mask medal megaphone melon mermaid microphone microscope milk mirror mitten modem money monitor
monkey moon mosquito motorcycle mountain mouse mouth muffin mug mushroom needle newspaper nose note notebook nurse nut
oboe octopus onion orange orangutan orca ornament ostrich otter owl paint paintbrush palette palm palmtree pan pancake
pancakes panda panel paper paperclip paprika parrot party pasta paste patch pawn peach peacock peanut pear pen pencil
penguin pepper perogies phone piano picnic picture pie pig pin pineapple pipe pizza plane planet plant plate plum plug
police postcard pot potato potatoes present pretzel princess printer propeller prune puffin pump pumpkin puppy purse
queen rabbit raccoon racket radio rainbow rat razor receiver record resistor resistors rhinoceros ring rings robot
rocket roller rollerblade roof rook rooster rose router rug ruler runner sailboat sailor salad salami sandwich santa
satellite saturn sausage saw saxophone scalpel scale scarecrow scarf school scissors scooter scorpion screwdriver
scroll seagull seahorse seal server shark shears sheep shell ship shirt shoe shoes shorts shovel shrimp shuttle skateboard
skier skull skyscraper sled sledge snail snake snow snowflake snowman snowstorm sock sofa soldier sombrero soup spaghetti
speaker spider spoon squirrel stamp stamper stapler star statue steak stethoscope stick stocking stones storm stove
strawberry submarine suitcase sun sunflower sunglasses sunset suit surfboard swan sword syringe table tank tea teacup
teapot teddybear telephone telescope television tent thermometer thongs thumbtack ticket tie tiger tire toadstool toast
toaster toilet tomato tombstone tomb tools toothbrush tooth tophat toque torch tower tractor train transistor trawler tree
trombone trophy trowel truck trumpet tulips turban turkey turntable turtle tv umbrella van vase venus violin virus
volleyball vulture wagon wall wallet wand wasp watch watermelon wedge well whale wheel wheelbarrow whistle window wine
wing wolf woman wood workstation worm wreath wrench xylophone yacht zebra
keyhole chalkboard blackboard lego hairdryer wheelchair couple hedgehog peas corn pomegranate kiwi
doctor chemist skeleton heater shield hut cottage barn villa drawing chess rings racquet racquets camper astronaut
""".split())
MODIFIERS = frozenset("""
red blue green yellow orange purple pink white black brown grey gray golden silver gold old new big small little large
tall happy angry sad sleeping bored crazy flying steaming open closed empty full half wild red-eye electric acoustic
digital compact fried frying drinking rubber wedding birthday christmas ice cream soft hard hot french hash water wine
martini beer coffee tea orange apple pumpkin milk tennis golf soccer bass grand video movie computer cell cellular mobile
desk table floor street traffic safety paint vacuum scuba satellite safe teddy polar emperor fire police race formula one
toy paper wooden metal garbage trash mouse cat dog baseball football bowling cricket badminton sail rowing military garlic
chemistry erlenmeyer magnifying party witch winter cowboy top hiking running tall palm pine oak maple cherry plum musical
construction blacksmith submarine breakfast chicken corn cheese pepperoni baby boy girl business nail hand pocket
dice stack tools fountain ballpoint light picture photo postage playing chess disco snow sun moon rain storm
atomic human crescent grain space sea guinea clown killer dall grizzly brush envelope alarm wall flower rose vinyl
""".split())
# Italian and French titles: "gatto_cat_architetto" shows a cat.
TRANSLATED = {
    "abeille": "bee", "acquila": "eagle", "aglio": "garlic", "albero": "tree", "ambulanza": "ambulance", "anatra": "duck",
    "antilope": "antelope", "ape": "bee", "aquila": "eagle", "arbre": "tree", "bicicletta": "bicycle", "biberon": "bottle",
    "bussola": "compass", "calamita": "magnet", "calcolatrice": "calculator", "cammello": "camel", "candela": "candle",
    "canguro": "kangaroo", "cavalletta": "grasshopper", "cavallo": "horse", "chiave": "key", "ciuccio": "pacifier",
    "cigno": "swan", "clessidra": "hourglass", "coccinella": "ladybug", "coccinelle": "ladybug", "coccinellona": "ladybug",
    "colombo": "pigeon", "coniglio": "rabbit", "couronne": "crown", "cornetto": "croissant", "dente": "tooth",
    "dino": "dinosaur", "dinosauro": "dinosaur", "elefante": "elephant", "elefantone": "elephant", "fabbrica": "factory",
    "farfalla": "butterfly", "fattoria": "farm", "fiore": "flower", "formichina": "ant", "formicona": "ant",
    "gabbiano": "seagull", "gallo": "rooster", "gattina": "cat", "gatto": "cat", "gelato": "ice cream", "glace": "ice cream",
    "gufo": "owl", "leone": "lion", "libro": "book", "livella": "level", "lucchetto": "padlock", "lucertola": "lizard",
    "lucertolona": "lizard", "lucertolone": "lizard", "lumaca": "snail", "mante": "mantis", "mantide": "mantis",
    "microscopio": "microscope", "mondo": "globe", "moschito": "mosquito", "motosega": "chainsaw", "mucca": "cow",
    "olifant": "elephant", "orso": "bear", "ours": "bear", "palloncini": "balloons", "pannocchia": "corn cob",
    "pasteque": "watermelon", "pecora": "sheep", "pecorella": "sheep", "pennello": "paintbrush", "pera": "pear",
    "pescetto": "fish", "pinguino": "penguin", "pollo": "chicken", "pomodori": "tomatoes", "principessa": "princess",
    "provetta": "test tube", "ragnetto": "spider", "ragno": "spider", "ramarro": "lizard", "rana": "frog",
    "ravanello": "radish", "sapin": "fir tree", "siringa": "syringe", "spaventapasseri": "scarecrow",
    "stampante": "printer", "struzzo": "ostrich", "tacchino": "turkey", "telefono": "telephone", "tigre": "tiger",
    "topo": "mouse", "toro": "bull", "torta": "cake", "trattore": "tractor", "uccello": "bird", "uovo": "egg",
    "vacca": "cow", "zanzara": "mosquito", "zucca": "pumpkin", "betoniera": "concrete mixer", "palmtree": "palm tree",
    "teddybear": "teddy bear", "tophat": "top hat", "cacuts": "cactus", "hummers": "hummer",
}
NOUNS = NOUNS | frozenset(TRANSLATED.values())
