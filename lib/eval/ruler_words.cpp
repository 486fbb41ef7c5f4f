// SPDX-License-Identifier: Apache-2.0
// The words of the RULER tasks: common English, chosen for this file.
#include "lib/eval/ruler.h"

#include <algorithm>
#include <initializer_list>

namespace million {

namespace {

constexpr std::string_view kAdjectives =
    "able acid aged agile alert alive alone amber ample angry aquatic arctic ashen atomic "
    "autumn average awake aware azure bald basic bitter blank bleak blind blond blunt bold "
    "brave brief bright brisk broad bronze brown busy calm candid careful casual cheap cheerful "
    "chilly civil classic clear clever coarse coastal cold common compact complex concrete "
    "content cosmic costly cozy crimson crisp crude cubic curious curly cyan daily damp daring "
    "dark dear decent deep dense direct dirty distant double drowsy dull dusty eager early "
    "eastern elastic elder electric elegant empty endless equal exact exotic extra faint fair "
    "false famous fancy fatal feeble fertile fierce final firm flat fluent fluffy foggy fond "
    "foreign formal frank frantic frequent fresh friendly frosty frozen fuzzy gentle genuine "
    "giant gifted gigantic glad global gloomy glossy golden grand grave greasy greedy green "
    "grim guilty handy happy harsh hasty heavy hidden hollow honest humble humid hungry ideal "
    "idle immense inner intact jolly keen kind large late lavish lazy lean legal level light "
    "likely little lively local lonely loose loud lovely loyal lucky lunar magic major marble "
    "massive mature mellow merry mighty mild minor misty mobile modern modest moist muddy mute "
    "mutual naive native neat nervous neutral nimble noble noisy normal northern novel numb "
    "obscure olive orange outer oval pale patient perfect plain playful pleasant plump polar "
    "polite poor popular precise pretty prime private proper proud public purple quick quiet "
    "random rapid rare ready recent regal regular remote rich rigid ripe robust rocky rosy "
    "rotten rough round royal rural rusty sacred salty sandy savage scarce scarlet secret "
    "selfish senior sharp shiny short shrill silent silky silver simple single sleepy slender "
    "slow small smart smooth sober social soft solar solid sour southern spare spicy spiral "
    "stale steady steep sticky stiff strange strict strong sturdy subtle sudden sunny superb "
    "sweet swift tall tame tender tense thick thin thirsty tidy tight tiny total tough tragic "
    "tropical true urban urgent useful vague valid vast velvet vibrant violet vital vivid vocal "
    "warm wealthy weary western wicked wide wild windy wise witty wooden woolen worthy yellow "
    "young zealous";

constexpr std::string_view kNouns =
    "acorn actor airport album alley almond anchor angle ankle antler apple apron arena arrow "
    "artist atlas attic avenue badge bakery balcony bamboo banana banjo banner barrel basin "
    "basket battery beach beacon beard beaver bicycle biscuit blossom bonnet border bottle "
    "boulder bracelet branch bread breeze brick bridge broom bucket buckle buffalo bugle bullet "
    "button cabbage cabin cactus camel camera candle canoe canvas canyon captain caravan carpet "
    "carrot castle cavern ceiling cellar cement chain chalk channel chapel cherry chess chimney "
    "circle circus citizen clinic closet clover coffee collar column comet compass copper coral "
    "corner cottage cotton cougar cousin cradle crater crayon cricket crown crystal curtain "
    "cushion cymbal dagger daisy dancer desert diamond doctor dollar dolphin donkey dragon "
    "drawer dungeon eagle easel eclipse editor elbow elephant emerald engine envelope escalator "
    "estate falcon farmer feather fiddle finger flame flannel flute forest fossil fountain "
    "fridge galaxy gallery garage garden garlic gazelle geyser ginger giraffe glacier globe "
    "glove goblet gorilla grape guitar hammer hamster harbor harvest hazel helmet heron hinge "
    "horizon hotel hunter iceberg igloo island ivory jacket jaguar jasmine jelly jewel journal "
    "judge juggler jungle kayak kennel kettle kidney kitchen kitten knight ladder lagoon "
    "lantern laptop laundry lawyer leather lemon lentil leopard library lobster locket lumber "
    "magnet mailbox mallet mango mantle maple market marsh meadow medal melon mermaid meteor "
    "mirror mitten monkey monsoon mosaic motor mountain muffin museum mustard napkin necklace "
    "needle nephew nickel nugget nursery oasis ocean octopus office onion orchard orchid organ "
    "otter oven oyster paddle palace pancake panda panther papaya parade parrot parsley pasture "
    "peach peacock peanut pebble pelican pencil penguin pepper piano pickle picture pigeon "
    "pillow pilot pirate pistol planet plaster platter pocket poet pollen poncho poppy portrait "
    "potato poultry powder prairie printer prison puddle pumpkin puppet pyramid quarry queen "
    "quill rabbit raccoon radar radish railway rainbow ranger raven razor reptile ribbon riddle "
    "river robin rocket rooster rubber ruby rudder saddle sailor salad salmon sandal satchel "
    "sauce sausage scholar school scooter season shadow shelf shelter sheriff shovel shrimp "
    "shuttle signal singer skater slipper snail soldier soup spider spinach sponge spoon "
    "squirrel stadium stapler statue stove stream street student studio suitcase summer sweater "
    "syrup tailor tavern teacher teapot temple tennis theater thimble thistle throat thunder "
    "ticket tiger timber tomato tongue tornado tortoise towel tower train treasure trumpet "
    "tulip tunnel turkey turnip turtle uncle unicorn urchin vanilla vapor vault vessel viking "
    "village violin visitor volcano wagon waiter walnut walrus whale whisker whistle widow "
    "willow window winter wizard wolf woodland workshop wrist yacht zebra zipper";

constexpr std::string_view kVerbs =
    "absorb accept achieve acquire adapt admire adopt advise afford agree allow amuse announce "
    "appear applaud approve argue arrange arrive assemble assist attach attend avoid balance "
    "bathe become begin behave believe belong bless borrow bounce bring build bury cancel carry "
    "catch celebrate choose claim climb collect combine compare compete compose confess connect "
    "consider continue convince cough create crush decide decorate defend deliver deny depend "
    "describe destroy develop differ discover divide dream drift earn educate embrace employ "
    "encourage enjoy enter erase escape estimate evaluate examine exceed excite excuse exist "
    "expand explore extend fasten fetch finish float follow forgive freeze gather glide grab "
    "greet guess happen hatch hesitate hover hurry ignore imagine imitate improve include "
    "increase inform inspect invent invite jump kneel knock laugh launch listen locate manage "
    "measure memorize migrate multiply nourish observe obtain offer operate overcome perform "
    "permit persuade polish ponder possess postpone prefer prepare prevent produce promise "
    "propose protect provide publish punish pursue realize receive reduce refuse rehearse "
    "reject release remain remember repair replace require rescue respond retire reveal scatter "
    "scrub search separate shiver shout sneeze soothe spill squeeze stretch struggle subtract "
    "succeed suggest survive suspect swing transform travel tremble vanish wander whisper "
    "wonder worship wrestle";

void append_words(std::string_view list, std::vector<std::string_view>& out) {
  while (!list.empty()) {
    const size_t end = std::min(list.find(' '), list.size());
    out.push_back(list.substr(0, end));
    list.remove_prefix(std::min(end + 1, list.size()));
  }
}

std::vector<std::string_view> words_of(std::initializer_list<std::string_view> lists) {
  std::vector<std::string_view> out;
  for (const std::string_view list : lists) append_words(list, out);
  return out;
}

}  // namespace

const std::vector<std::string_view>& ruler_adjectives() {
  static const auto kList = words_of({kAdjectives});
  return kList;
}

const std::vector<std::string_view>& ruler_nouns() {
  static const auto kList = words_of({kNouns});
  return kList;
}

const std::vector<std::string_view>& ruler_words() {
  static const auto kList = words_of({kAdjectives, kNouns, kVerbs});
  return kList;
}

int ruler_pair_count() {
  return static_cast<int>(ruler_adjectives().size() * ruler_nouns().size());
}

std::string ruler_pair(int i) {
  const auto n = ruler_nouns().size();
  const auto at = static_cast<size_t>(i);
  return std::string(ruler_adjectives()[at / n]) + "-" + std::string(ruler_nouns()[at % n]);
}

}  // namespace million
