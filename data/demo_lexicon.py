"""The words of the demo corpus: everyday vocabulary by domain, and made-up insults.

Reads and writes nothing; `demo_grammar.py` puts the words into sentences. Every insulting word here
was invented for this project: none is a real slur, none names a group of people, none is sexual.
They stand in for toxic vocabulary so that the whole pipeline can run, and be read, without offence.
A domain's `figures` are ordinary things (a donkey, a doormat) that are an insult only when somebody
is called one. Change a word here and rebuild (`python data/build_demo.py`) to get a different demo.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """One neutral subject with the words that occur together in it.

    Attributes:
        name: Short subject name; used as ToxiCN's `topic`.
        roles: People, as nouns that an adjective can precede.
        objects: Things that are acted on.
        places: Complete place phrases ("in the garden", "在花园里").
        actions: (base form, past form) of transitive verbs; Chinese repeats the same form.
        figures: Further things that are acted on, and a playground insult when said of a person.
    """

    name: str
    roles: tuple[str, ...]
    objects: tuple[str, ...]
    places: tuple[str, ...]
    actions: tuple[tuple[str, str], ...]
    figures: tuple[str, ...]


def _split(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(","))


def _domain(name: str, roles: str, objects: str, places: str, actions: str, figures: str) -> Domain:
    """Build a domain from comma-separated lists; a verb is `base/past`, or one form for both."""
    pairs = tuple(tuple(action.split("/")) for action in _split(actions))
    return Domain(
        name=name,
        roles=_split(roles),
        objects=_split(objects),
        places=_split(places),
        actions=tuple((pair[0], pair[-1]) for pair in pairs),
        figures=_split(figures),
    )


ENGLISH_INSULT_NOUNS: tuple[str, ...] = _split(
    "grubnoggin, blatherwit, sludgebrain, mopwaddle, dribblesock, muckwhistle, fognoddle,"
    "clodspanner, wobblepate, snortbucket, gristlemop, bungleturnip, moldertwig, squelchhead,"
    "drabblegob, plonkwort, swampkettle, crumblethatch, puddlefig, thrumbleknot, flapdrizzle,"
    "grumblespoon, noodlebarrow, soggerplum, wafflecrank, dunderpeg, fumblebroth, slopwhisker,"
    "gurglepot, mizzlecrumb"
)
ENGLISH_INSULT_ADJECTIVES: tuple[str, ...] = _split(
    "blithersome, sogwitted, grubbrained, fuddlesome, plonkish, muckfaced, bogminded, dribblish,"
    "grottlesome, soupheaded, wobblish, dampbrained, crumbwitted, mossfaced"
)
CHINESE_INSULT_NOUNS: tuple[str, ...] = _split(
    "泥团脑,锈壶嘴,糠袋子,漏瓢头,霉豆筐,歪桶头,皱萝皮,破筛嘴,黏锅巴,咕噜泥,瘪瓜瓢,馊面团,烂草帽,糊锅底,木桩脑,噗泡头,"
    "漏勺脑,破锣腮,湿柴垛,酸菜坛,蔫茄头,缺角碗,烂泥勺,霉米团,歪灶台,破蒲扇,锈钉帽,糊浆瓢,空葫脑,漏风匣"
)
CHINESE_INSULT_ADJECTIVES: tuple[str, ...] = _split(
    "泥糊糊,锈渣渣,馊巴巴,瘪兮兮,霉哄哄,烂唧唧,歪溜溜,糠乎乎,霉嗒嗒,糊稀稀,蔫丢丢,锈噗噗,泥叽叽,漏嗖嗖"
)
# Labelled `obscene` as well as `insult`: the coarser-sounding part of the made-up words.
COARSE_INSULTS: frozenset[str] = frozenset(
    _split("snortbucket, drabblegob, squelchhead, muckfaced, muckwhistle, 馊面团, 馊巴巴, 烂草帽")
)

ENGLISH_DOMAINS: tuple[Domain, ...] = (
    _domain(
        "gardens",
        "gardener, florist, botanist, beekeeper, farmer, seed seller",
        "rake, tulip, hedge, compost heap, rose, watering can, apple tree, shovel, flower bed,"
        "greenhouse, bean row, wheelbarrow",
        "in the garden, behind the greenhouse, by the old hedge, under the apple tree,"
        "at the flower show",
        "water/watered, plant/planted, prune/pruned, weed/weeded, dig up/dug up, mulch/mulched",
        "cabbage, scarecrow",
    ),
    _domain(
        "weather",
        "forecaster, sailor, lighthouse keeper, pilot, meteorologist, shepherd",
        "barometer, umbrella, raincoat, weather map, thermometer, wind gauge, storm lantern,"
        "snow shovel, rain barrel, forecast",
        "on the hill, near the harbour, above the valley, along the coast, at the weather station",
        "check/checked, measure/measured, carry/carried, watch/watched, record/recorded,dry/dried",
        "goose, bucket",
    ),
    _domain(
        "cooking",
        "baker, cook, waiter, grocer, cheesemaker, pastry chef",
        "soup, bread, saucepan, onion, pie, kettle, wooden spoon, recipe, oven, lemon cake,"
        "butter dish, pancake",
        "in the kitchen, at the bakery, on the stove, beside the oven, at the market",
        "bake/baked, stir/stirred, taste/tasted, peel/peeled, boil/boiled, slice/sliced",
        "potato, sponge",
    ),
    _domain(
        "trains",
        "conductor, passenger, signalman, ticket clerk, driver, porter",
        "ticket, timetable, suitcase, carriage, platform sign, whistle, engine, luggage rack,"
        "season pass, railway map",
        "on the platform, at the station, in the last carriage, beside the track,"
        "near the ticket office",
        "print/printed, miss/missed, repair/repaired, board/boarded, stamp/stamped,unload/unloaded",
        "mule, sponge",
    ),
    _domain(
        "bicycles",
        "cyclist, mechanic, courier, racer, bell maker, commuter",
        "bicycle, chain, pump, saddle, front wheel, helmet, brake cable, basket, bell, spare tyre",
        "in the bike shed, on the cycle path, at the repair shop, round the roundabout,"
        "down the steep road",
        "oil/oiled, ride/rode, lock/locked, inflate/inflated, adjust/adjusted, borrow/borrowed",
        "snail, doormat",
    ),
    _domain(
        "libraries",
        "librarian, student, archivist, bookbinder, historian, translator",
        "novel, atlas, catalogue, bookmark, dictionary, reading lamp, index card, old letter,"
        "bookshelf, newspaper",
        "in the library, between the shelves, at the front desk, in the reading room,"
        "on the second floor",
        "read/read, return/returned, sort/sorted, copy/copied, renew/renewed, shelve/shelved",
        "parrot, broom",
    ),
    _domain(
        "music",
        "violinist, drummer, singer, organist, composer, piano tuner",
        "violin, drum, piano, song, trumpet, sheet of music, choir book, metronome, flute, concert",
        "in the concert hall, behind the stage, at the rehearsal, on the bandstand,"
        "in the music room",
        "play/played, tune/tuned, practise/practised, hear/heard, rehearse/rehearsed,"
        "polish/polished",
        "parrot, goose",
    ),
    _domain(
        "chess",
        "chess player, referee, teacher, beginner, club secretary, problem solver",
        "chessboard, knight, rook, opening, clock, score sheet, endgame, bishop, trophy, puzzle",
        "at the club, in the final round, across the table, at the tournament, in the tea room",
        "move/moved, study/studied, set up/set up, explain/explained, lose/lost, solve/solved",
        "pawn, potato",
    ),
    _domain(
        "carpentry",
        "carpenter, painter, plumber, builder, locksmith, upholsterer",
        "table, hammer, door, ladder, toolbox, window frame, wardrobe, plank, saw, paint tin",
        "in the workshop, on the roof, up the ladder, behind the shed, in the hallway",
        "sand/sanded, paint/painted, mend/mended, measure/measured, varnish/varnished, lift/lifted",
        "broom, doormat, bucket",
    ),
    _domain(
        "walks",
        "hiker, guide, ranger, map maker, birdwatcher, ferryman",
        "trail, compass, backpack, tent, footbridge, map, walking stick, signpost, water bottle,"
        "pair of boots",
        "by the river, in the forest, over the bridge, at the camp, beyond the meadow",
        "follow/followed, pack/packed, cross/crossed, find/found, sketch/sketched, leave/left",
        "donkey, mule",
    ),
)
ENGLISH_NAMES: tuple[str, ...] = _split(
    "Ana, Tom, Ruth, Felix, Nora, Hugo, Mira, Otto, Clara, Jonas, Ida, Leo"
)
ENGLISH_PRAISE: tuple[str, ...] = _split(
    "careful, patient, clever, cheerful, gentle, honest, tidy, brave, thoughtful, quiet, skilful,"
    "generous, steady, curious, modest, punctual, friendly, busy, sleepy, forgetful, stubborn"
)
ENGLISH_OBJECT_ADJECTIVES: tuple[str, ...] = _split(
    "old, new, small, large, red, green, heavy, narrow, bright, broken, rusty, clean, wet, blue,"
    "cheap, borrowed, round, favourite"
)
ENGLISH_TIMES: tuple[str, ...] = _split(
    "today, yesterday, last week, on Monday, on Friday, before breakfast, after lunch, at noon,"
    "in March, in October, this morning, every evening, in the rain, twice a year, at seven"
)
ENGLISH_ADVERBS: tuple[str, ...] = _split(
    "slowly, carefully, badly, quickly, quietly, well, gladly, often, rarely, neatly"
)
ENGLISH_NUMBERS: tuple[str, ...] = _split("two, three, four, five, six, ten, twelve, twenty")

CHINESE_DOMAINS: tuple[Domain, ...] = (
    _domain(
        "园艺",
        "园丁,花农,养蜂人,果农,种子商",
        "玫瑰,篱笆,铲子,苹果树,水壶,花盆,郁金香,豆苗,手推车,温室",
        "在花园里,在温室后面,在果树下,在花展上,在院子里",
        "浇,种,修剪,搬,整理,照看",
        "冬瓜,白菜,稻草人",
    ),
    _domain(
        "天气",
        "预报员,水手,牧羊人,飞行员,观测员",
        "雨伞,气压表,雨衣,天气图,温度计,风速仪,雪铲,预报",
        "在山上,在港口,在海边,在气象站,在河谷里",
        "检查,测量,带,记录,观察,晾干",
        "墙头草,蜗牛",
    ),
    _domain(
        "烹饪",
        "面包师,厨师,服务员,菜贩,点心师",
        "汤,面包,平底锅,洋葱,馅饼,茶壶,木勺,菜谱,烤箱,柠檬蛋糕",
        "在厨房里,在面包店,在炉子上,在集市上,在餐桌旁",
        "烤,搅拌,品尝,切,煮,端",
        "土豆,饭桶,海绵",
    ),
    _domain(
        "铁路",
        "列车员,乘客,信号员,售票员,司机",
        "车票,时刻表,行李箱,车厢,站牌,哨子,火车头,月票",
        "在站台上,在车站,在最后一节车厢里,在铁轨旁,在售票处",
        "打印,修理,检查,搬,核对,寄",
        "毛驴,抹布",
    ),
    _domain(
        "骑行",
        "骑手,修车师傅,快递员,赛车手,上班族",
        "自行车,链条,打气筒,车座,前轮,头盔,刹车线,车篮,铃铛",
        "在车棚里,在自行车道上,在修车铺,在陡坡上,在路口",
        "擦,骑,锁,调整,借,换",
        "蜗牛,毛驴",
    ),
    _domain(
        "图书馆",
        "管理员,学生,档案员,翻译,历史学家",
        "小说,地图册,目录,书签,词典,台灯,旧信,书架,报纸",
        "在图书馆,在书架之间,在前台,在阅览室,在二楼",
        "读,归还,整理,抄写,续借,摆放",
        "鹦鹉,扫帚",
    ),
    _domain(
        "音乐",
        "小提琴手,鼓手,歌手,作曲家,调琴师",
        "小提琴,鼓,钢琴,歌谱,小号,节拍器,长笛,唱片",
        "在音乐厅,在后台,在排练室,在舞台上,在琴房里",
        "演奏,调,练习,听,排练,擦亮",
        "木偶,鹦鹉",
    ),
    _domain(
        "木工",
        "木匠,油漆工,水管工,锁匠,学徒",
        "桌子,锤子,木门,梯子,工具箱,窗框,衣柜,木板,锯子,油漆桶",
        "在工作间,在屋顶上,在梯子上,在棚子后面,在走廊里",
        "打磨,刷,修补,量,抬,装",
        "抹布,扫帚,木偶",
    ),
)
CHINESE_NAMES: tuple[str, ...] = _split("小林,小周,阿明,老陈,小雨,阿青,老吴,小何")
CHINESE_PRAISE: tuple[str, ...] = _split(
    "细心,耐心,聪明,开朗,温和,诚实,整洁,勇敢,体贴,安静,熟练,大方,稳重,好奇,谦虚,守时,健忘,固执"
)
CHINESE_OBJECT_ADJECTIVES: tuple[str, ...] = _split(
    "旧,新,小,大,红色,绿色,沉重,明亮,坏掉,生锈,干净,潮湿,便宜,圆形,借来"
)
CHINESE_TIMES: tuple[str, ...] = _split(
    "今天,昨天,上周,星期一,星期五,早饭前,午饭后,中午,三月,十月,今天早上,每天晚上,下雨时,七点钟"
)
CHINESE_NUMBERS: tuple[str, ...] = _split("两,三,四,五,六,十,十二,二十")

DOMAINS: dict[str, tuple[Domain, ...]] = {"en": ENGLISH_DOMAINS, "zh": CHINESE_DOMAINS}
