"""The words of the embedded model's made-up world, by meaning: names, places, things, verbs and their forms. Everything
is written out here, so that the text made from it needs no word list from elsewhere. It knows nothing of sentences."""

from __future__ import annotations

from typing import Final


def _words(text: str) -> tuple[str, ...]:
    """The words of `text`, each once, in their order."""
    return tuple(dict.fromkeys(text.split()))


FEMALE_NAMES: Final = _words("""
Mary Anna Alice Emma Sarah Laura Julia Kate Lucy Jane Susan Helen Diana Rachel Martha Grace Rose Clara Nora Ellen Ruth
Sophie Olivia Emily Amy Jessica Amanda Lisa Karen Nancy Linda Maria Rebecca Hannah Megan Nicole Victoria Charlotte
Margaret Barbara Dorothy Betty Carol Sandra Donna Michelle Kelly Claire Eva Ella Ivy Molly Daisy Lily Ruby Sylvia
Teresa Irene Vera Edith Agnes Beatrice Cecilia Marion Judith Monica Naomi Fiona""")

MALE_NAMES: Final = _words("""
John James Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony Mark Paul Steven Andrew
Kenneth George Edward Brian Kevin Jason Jeffrey Ryan Jacob Gary Nicholas Eric Jonathan Stephen Larry Justin Scott
Brandon Benjamin Samuel Frank Gregory Raymond Alexander Patrick Jack Dennis Jerry Tyler Aaron Adam Henry Nathan Peter
Kyle Walter Simon Oliver Martin Arthur Albert Louis Victor Oscar Philip Ralph Leo Hugo Felix Max Tom Tim Sam Dan""")

NAMES: Final = FEMALE_NAMES + MALE_NAMES

PLACES: Final = _words("""
store park school market station library garden beach hospital restaurant office museum zoo farm church theater cinema
kitchen hotel bakery bank factory gym harbor airport castle village forest lake mountain river valley town city square
stadium playground bridge tower palace temple mill barn stable cottage cabin tavern inn cafe pharmacy laboratory
workshop studio gallery courthouse prison cemetery orchard vineyard meadow field hill cave island desert port dock
shop mall supermarket bookstore college university classroom courtyard cellar attic garage basement balcony lobby
shore pier fountain monastery mansion apartment house warehouse lighthouse quarry camp circus fair festival concert
party wedding bar club""")

CITIES: Final = _words("""
Paris London Rome Madrid Berlin Vienna Athens Lisbon Dublin Oslo Stockholm Helsinki Copenhagen Warsaw Prague Budapest
Moscow Tokyo Beijing Delhi Cairo Nairobi Ottawa Canberra Lima Havana Bangkok Hanoi Seoul Brussels Bern Amsterdam
Ankara Baghdad Tehran Damascus Tunis Tripoli Kabul Santiago Boston Chicago Denver Dallas Seattle Venice Florence
Milan Munich Geneva Jerusalem Babylon""")

CAPITALS: Final = dict(
    pair.split(":")
    for pair in _words("""
France:Paris England:London Italy:Rome Spain:Madrid Germany:Berlin Austria:Vienna Greece:Athens Portugal:Lisbon
Ireland:Dublin Norway:Oslo Sweden:Stockholm Finland:Helsinki Denmark:Copenhagen Poland:Warsaw Hungary:Budapest
Russia:Moscow Japan:Tokyo China:Beijing India:Delhi Egypt:Cairo Kenya:Nairobi Canada:Ottawa Australia:Canberra
Peru:Lima Cuba:Havana Thailand:Bangkok Vietnam:Hanoi Korea:Seoul Belgium:Brussels Switzerland:Bern Holland:Amsterdam
Turkey:Ankara Iraq:Baghdad Iran:Tehran Syria:Damascus Tunisia:Tunis Libya:Tripoli Afghanistan:Kabul Chile:Santiago""")
)

LANGUAGES: Final = dict(
    pair.split(":")
    for pair in _words("""
France:French England:English Italy:Italian Spain:Spanish Germany:German Greece:Greek Portugal:Portuguese
Norway:Norwegian Sweden:Swedish Finland:Finnish Denmark:Danish Poland:Polish Hungary:Hungarian Russia:Russian
Japan:Japanese China:Chinese Egypt:Arabic Thailand:Thai Korea:Korean Holland:Dutch Turkey:Turkish""")
)

ANIMALS: Final = _words("""
dog cat horse cow sheep pig goat lion tiger bear wolf fox rabbit mouse rat squirrel deer elephant monkey giraffe zebra
camel donkey bird eagle hawk owl crow sparrow robin duck swan hen rooster turkey parrot pigeon penguin frog toad snake
lizard turtle crocodile shark whale dolphin seal octopus crab lobster snail worm spider ant bee butterfly beetle fly
mosquito cricket puppy kitten lamb calf pony raven hedgehog badger otter beaver leopard panther ape kangaroo salmon""")

YOUNG: Final = dict(
    pair.split(":")
    for pair in _words("""
dog:puppy cat:kitten sheep:lamb cow:calf horse:foal bear:cub lion:cub duck:duckling goose:gosling hen:chick
swan:cygnet pig:piglet deer:fawn frog:tadpole goat:kid owl:owlet""")
)

FOODS: Final = _words("""
apple orange pear plum peach cherry grape lemon banana melon strawberry berry fig date potato tomato carrot onion
cabbage pea bean pumpkin mushroom pepper cucumber sandwich cake pie cookie biscuit pancake muffin pizza sausage egg
steak omelet salad pudding tart burger roll bun dumpling noodle waffle""")

DISHES: Final = _words("""
bread butter cheese soup rice meat fish chicken beef pork ham bacon honey sugar salt jam chocolate cream pasta stew
porridge toast corn fruit cereal candy garlic""")

DRINKS: Final = _words("water milk tea coffee juice wine beer cider lemonade cocoa soda")

OBJECTS: Final = _words("""
ring book ball key letter gift flower map box basket kiss snack drink hat coat bag camera clock watch lamp candle
mirror picture painting photo necklace bracelet coin ticket pencil pen notebook newspaper magazine card stamp envelope
umbrella knife fork spoon plate cup glass bowl pot pan kettle bottle jar bucket broom brush comb towel blanket pillow
sheet chair table desk bed sofa bench shelf drawer cabinet door window wall floor roof gate fence ladder hammer nail
saw axe shovel rake rope chain wheel cart wagon bicycle car truck bus train boat ship plane engine machine computer
phone radio television guitar piano violin drum flute trumpet bell whistle doll kite puppet puzzle toy sword shield
helmet arrow bow flag crown jewel diamond pearl stone rock brick log stick branch leaf seed root tree bush rose
tulip lantern compass telescope microscope thermometer scarf glove shirt dress skirt jacket sweater sock shoe boot
belt button needle thread ribbon carpet curtain vase statue medal trophy wallet purse suitcase trunk barrel crate
sack parcel package poster calendar dictionary diary novel poem song story recipe bill receipt report document
contract magnet battery bulb wire pipe hose tent tool mat cable""")

PROFESSIONS: Final = _words("""
teacher doctor nurse farmer baker butcher carpenter tailor sailor soldier captain king queen prince princess knight
judge lawyer banker merchant painter singer dancer actor writer poet artist musician pilot driver engineer scientist
student pupil professor priest monk bishop mayor officer clerk secretary manager waiter cook chef gardener shepherd
hunter fisherman miner blacksmith mechanic plumber electrician builder dentist surgeon librarian journalist editor
photographer detective thief guard servant maid butler neighbor friend stranger guest visitor child boy girl man woman
baby uncle aunt cousin nephew niece grandfather grandmother brother sister son daughter father mother husband wife
coach player runner swimmer champion leader hero wizard witch giant dwarf author tourist traveler customer owner
president minister senator director inspector""")

WORKPLACES: Final = dict(
    pair.split(":")
    for pair in _words("""
teacher:school doctor:hospital nurse:hospital farmer:farm baker:bakery carpenter:workshop sailor:harbor judge:courthouse
banker:bank painter:studio actor:theater pilot:airport scientist:laboratory student:university professor:college
monk:monastery clerk:office waiter:restaurant cook:kitchen gardener:garden miner:quarry librarian:library
king:palace knight:castle mechanic:garage guard:prison coach:stadium""")
)

BODY: Final = _words("""
hand arm leg foot head face eye ear nose mouth tooth finger toe knee elbow shoulder neck back chest stomach heart
brain bone skin hair""")

NATURE: Final = _words("""
sun moon star sky cloud rain snow wind storm thunder lightning fog ice fire smoke earth ocean sea wave sand mud dust
grass sunlight shadow rainbow flood volcano waterfall stream pond""")

ABSTRACT: Final = _words("""
idea plan question answer problem reason story lesson rule law secret promise mistake dream memory thought feeling
decision choice chance change price cost job task game race war battle meeting journey trip adventure surprise
argument message order offer opinion result example difference effort success failure habit skill theory method
experiment discovery project program system language culture tradition""")

MASS_ABSTRACT: Final = _words("""
love hope fear anger joy sadness courage wisdom patience honesty freedom justice peace truth beauty kindness luck
history music art science math silence happiness trouble pride money time work energy knowledge power""")

MATERIALS: Final = _words(
    "wood iron gold silver glass paper cloth leather stone wool silk plastic copper clay steel cotton"
)

COLORS: Final = _words("red blue green yellow black white brown gray purple orange pink golden silver")

ADJECTIVES: Final = _words("""
big small large little old new young long short tall heavy light dark bright warm cold hot cool clean dirty dry wet
soft hard sharp smooth rough round flat thick thin wide narrow deep strong weak fast slow quiet loud rich poor cheap
expensive beautiful ugly pretty lovely wonderful terrible strange common rare simple plain fancy modern ancient broken
empty full open closed safe dangerous useful useless famous popular special ordinary perfect huge tiny enormous
wooden shiny dusty rusty fresh rotten sweet sour bitter salty delicious""")

FEELINGS: Final = _words("""
happy sad angry tired hungry thirsty afraid proud lonely bored excited nervous worried curious jealous grateful
surprised confused calm cheerful ashamed sleepy sick brave""")

TRAITS: Final = _words("""
kind clever wise foolish honest lazy polite rude gentle cruel patient generous selfish friendly shy bold stubborn
careful careless loyal funny serious silly humble greedy charming""")

ADVERBS: Final = _words("""
quickly slowly quietly loudly carefully suddenly happily sadly gently finally softly easily eagerly silently calmly
proudly angrily politely patiently gladly nervously bravely""")

WEATHER: Final = _words("sunny rainy cloudy windy snowy foggy stormy cold warm hot dark bright quiet lovely cool")

DAYS: Final = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

MONTHS: Final = _words("January February March April May June July August September October November December")

SEASONS: Final = _words("spring summer autumn winter")

NUMBERS: Final = _words("""
one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty""")

OPPOSITES: Final = tuple(
    (pair.split(":")[0], pair.split(":")[1])
    for pair in _words("""
big:small hot:cold tall:short old:young rich:poor happy:sad strong:weak fast:slow light:dark heavy:light wet:dry
clean:dirty hard:soft loud:quiet thick:thin wide:narrow full:empty open:closed cheap:expensive safe:dangerous
sweet:sour beautiful:ugly brave:afraid wise:foolish polite:rude lazy:busy early:late near:far high:low up:down
left:right day:night black:white war:peace love:hate truth:lie friend:enemy summer:winter north:south east:west
morning:evening success:failure question:answer king:queen boy:girl man:woman father:mother brother:sister""")
)

# Verbs by use. Regular ones are inflected by rule, the others through IRREGULAR.
MOTION_VERBS: Final = _words("""
go walk run travel hurry return drive ride march wander sail climb rush crawl fly swim jump come move""")
INTRANSITIVE_VERBS: Final = _words("""
sleep laugh cry smile sing dance work play wait rest talk think dream fall shout whisper sneeze cough arrive leave
disappear listen breathe wake stand sit lie kneel nod wave tremble pray""")
HANDLING_VERBS: Final = _words("""
take find see carry hold drop lift push pull throw catch hide lose break fix repair clean wash paint open close touch
kick buy sell steal keep use need want like love hate watch draw move pick bring show borrow lend return cover fill
empty burn cut measure weigh wrap polish examine choose collect count destroy prepare order""")
EATING_VERBS: Final = _words("eat cook taste share finish bake bring buy prepare want enjoy smell chew swallow")
MENTAL_VERBS: Final = _words("know think believe hope say hear guess remember forget notice realize understand feel")
PERSON_VERBS: Final = _words("""
help meet see visit follow call thank greet invite teach trust warn remember forget love hate miss hug kiss admire
blame forgive ask answer tell watch join leave lead protect save surprise fear respect punish praise""")
ANIMAL_VERBS: Final = _words("run sleep jump hide eat drink bark howl growl climb swim fly dig hunt wait crawl bite")
LOOK_VERBS: Final = _words("look seem appear remain become stay smell feel")

VERBS: Final = tuple(
    dict.fromkeys(
        MOTION_VERBS
        + INTRANSITIVE_VERBS
        + HANDLING_VERBS
        + EATING_VERBS
        + MENTAL_VERBS
        + PERSON_VERBS
        + ANIMAL_VERBS
        + LOOK_VERBS
        + _words(
            "give hand offer send pass write read make build grow cost belong speak live hang win learn start stop try"
        )
    )
)

IRREGULAR: Final = {
    base: (past, participle)
    for base, past, participle in (
        entry.split(":")
        for entry in _words("""
go:went:gone run:ran:run drive:drove:driven ride:rode:ridden fly:flew:flown swim:swam:swum come:came:come
sleep:slept:slept sing:sang:sung think:thought:thought fall:fell:fallen leave:left:left wake:woke:woken
stand:stood:stood sit:sat:sat lie:lay:lain kneel:knelt:knelt take:took:taken find:found:found see:saw:seen
hold:held:held throw:threw:thrown catch:caught:caught hide:hid:hidden lose:lost:lost break:broke:broken
buy:bought:bought sell:sold:sold steal:stole:stolen keep:kept:kept draw:drew:drawn bring:brought:brought
lend:lent:lent cut:cut:cut choose:chose:chosen eat:ate:eaten know:knew:known say:said:said hear:heard:heard
forget:forgot:forgotten understand:understood:understood feel:felt:felt meet:met:met teach:taught:taught
tell:told:told lead:led:led forgive:forgave:forgiven drink:drank:drunk dig:dug:dug bite:bit:bitten
become:became:become give:gave:given send:sent:sent write:wrote:written read:read:read make:made:made
build:built:built grow:grew:grown cost:cost:cost speak:spoke:spoken hang:hung:hung win:won:won show:showed:shown get:got:got begin:began:begun""")
    )
}

IRREGULAR_PLURALS: Final = dict(
    entry.split(":")
    for entry in _words("""
man:men woman:women child:children foot:feet tooth:teeth mouse:mice knife:knives shelf:shelves leaf:leaves wolf:wolves
sheep:sheep fish:fish deer:deer salmon:salmon wife:wives thief:thieves calf:calves fisherman:fishermen half:halves
goose:geese scarf:scarves dwarf:dwarves loaf:loaves""")
)

DOUBLING: Final = frozenset(_words("run swim sit stop hug drop nod win dig cut forget get begin"))
"""Verbs that double their last consonant before -ing and -ed."""
