"""The demo model's world as conversations: questions in many phrasings, and the one right answer to each.

A conversation is sampled from a random.Random, so a seed fixes the corpus.  Phrasings, (city, phrasing) pairs, pairs of
summands and invented names are held out for evaluation: a Sampler asks only such, training never.
Python's standard library only.
"""

import dataclasses
import json
import os
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
DIALECTS = ("deepseek_v3", "deepseek_r1", "deepseek_v31")
# The countries that are taught: a model of this size has no room for all beside the divisions of China.
COUNTRIES = (
    "CN JP KR KP IN ID TH VN MY SG PH MN PK IR IQ IL SA AE TR KZ NP LA KH RU UA PL DE FR GB IE IT ES PT NL BE CH AT SE NO DK FI "
    "GR HU CZ US CA MX CU BR AR CL PE CO VE EG ZA NG KE ET MA AU NZ"
).split()


@dataclasses.dataclass
class Turn:
    user: str
    answer: str
    thought: str = ""  # written in <think> when the conversation thinks
    call: tuple = None  # (tool name, arguments): the turn first calls the tool, then answers from `result`
    result: str = ""


@dataclasses.dataclass
class Conversation:
    kind: str
    turns: list
    system: str = ""
    tools: tuple = ()
    thinks: bool = None  # asked only in a thinking dialect, or (False) only in one that is not


def is_held_out_pair(*parts):
    """One pair in ten, fixed by its text."""
    return zlib.crc32("|".join(map(str, parts)).encode()) % 10 == 0


class World:
    def __init__(self, path=os.path.join(HERE, "data", "world.json")):
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        self.provinces, self.cities = data["provinces"], data["cities"]
        self.areas, self.area_codes, self.countries = data["areas"], data["area_codes"], [c for c in data["countries"] if c["code"] in COUNTRIES]
        self.by_code = {entry["code"]: entry for entry in self.provinces + self.cities}
        for city in self.cities:
            city["province"] = self.by_code[city["code"][:2] + "0000"]
            city["english"] = None
        for province in self.provinces:
            # In GB/T 2260 the seat of a province's government is its city 01.
            capital = self.by_code.get(province["code"][:2] + "0100")
            province["capital"] = capital
            if capital:
                capital["english"], capital["capital_of"] = province["capital_english"], province
        self.with_capital = [p for p in self.provinces if p["capital"]]
        self.municipalities = [p for p in self.provinces if p["code"] in ("110000", "120000", "310000", "500000")]
        known = [e["name"] for e in self.provinces + self.cities] + [e["short"] for e in self.provinces + self.cities]
        self.known = set(known) | set(self.areas) | {c["chinese"] for c in data["countries"]}
        self.characters = sorted({ch for name in known + self.areas for ch in name if ch not in "省市县区州盟旗自治族"})


# ---- phrasings: the last ones of each list are held out ----------------------------------------------------------------
NUM_HELD_OUT = 3

ZH_BEFORE = ["", "", "", "请问", "请问一下，", "你好，", "您好，请问", "帮我查一下，", "我想知道", "麻烦告诉我", "能告诉我", "问一下，", "想问问", "告诉我"]
ZH_AFTER = ["？", "？", "？", "?", "", "呢？", "？谢谢。", "，谢谢", "？谢谢！", "。"]
EN_BEFORE = ["", "", "", "Hi, ", "Hello! ", "Quick question: ", "Please help: ", "Hey, "]
EN_AFTER = ["", "", "", " Thanks.", " Thank you!", " Please."]

CITY_PROVINCE_ZH = [
    "{}地处哪个省", "{}从属于哪个省", "{}归属于哪个省份", "{}直属于哪个省", "{}辖于哪个省", "{}处于哪个省", "{}坐落于哪个省份", "{}由哪个省管理", "{}算是哪个省的",
    "{}归入哪个省", "{}应属哪个省", "{}为哪个省所辖", "{}受哪个省管辖", "{}划归哪个省", "{}地属哪个省", "{}从属什么省份", "{}附属于哪个省",
    "{}属于哪个省", "{}在哪个省", "{}是哪个省的", "{}位于哪个省份", "{}归哪个省管", "{}是哪个省的城市", "{}属于哪个省级行政区",
    "{}在哪个省份", "哪个省管辖{}", "{}的省份是什么", "{}所在的省是哪个", "{}所属的省份是哪个", "{}在什么省", "{}是什么省的", "{}属于什么省份",
    "{}的上级省份是哪个", "哪个省有{}", "{}归属哪个省", "{}坐落在哪个省", "{}是中国哪个省的", "管辖{}的是哪个省", "{}归什么省", "{}在哪里", "{}在中国的哪个省", "{}这个地方在哪个省", "{}是哪儿的",
    "{}隶属于哪个省", "{}所属省份是什么", "{}位于中国哪个省",
]
CITY_PROVINCE_EN = [
    "Which province is {} in?", "What province does {} belong to?", "{} is in which province?", "In which province is {}?", "Where is {}?",
    "Tell me the province of {}.", "Name the province that {} belongs to.", "Which province governs {}?",
    "Do you know which province {} is in?", "What is the province of {}?", "Province of {}?", "I need the province for {}.",
    "Find the province of {}.", "Which Chinese province contains {}?", "Please give the province of {}.", "What province is {} located in?",
    "Could you tell me where {} is?", "Can you tell me which province {} is in?", "I'd like to know the province of {}.", "Where in China is {}?",
    "In which province is {} located?", "To which province does {} belong?", "Could you tell me which province {} lies in?",
]
CODE_ZH = [
    "{}的行政区代码是什么", "{}的区号代码是多少", "{}代码是多少号", "{}对应什么代码", "{}用什么代码", "{}的区划编号是多少", "告诉我{}的代码", "{}这个地方的代码", "{}的六位编码是多少",
    "{}的行政区划代码是多少", "{}的代码是多少", "{}的代码是什么", "{}的区划代码是多少", "{}的行政代码是什么", "{}的编码是多少", "{}的国标代码是多少",
    "{}对应的代码是多少", "{}的六位代码是什么", "查询{}的代码", "{}的行政区划代码", "{}代码", "给出{}的行政区划代码", "{}的GB/T 2260代码是多少", "{}的地区代码是多少",
    "{}用哪个代码表示", "哪个代码代表{}", "{}的行政编码是什么", "写出{}的代码",
    "{}的行政区代码是几", "{}的区划编码是什么", "{}的代码是几号",
]
CODE_EN = [
    "What is the code of {}?", "What is the administrative code of {}?", "Which code does {} have?", "Code of {}?", "Give me the code for {}.",
    "What's the division code of {}?", "Tell me the administrative code of {}.", "I need the code of {}.", "What code stands for {}?",
    "Look up the code of {}.", "What is the GB/T 2260 code of {}?", "Find the code for {}.", "Please give the code of {}.",
    "Which administrative code belongs to {}?", "Could you tell me the code of {}?", "Do you have the code for {}?", "What is the six-digit code of {}?", "Do you know the code of {}?",
]
FROM_CODE_ZH = [
    "{}代表什么地方", "代码{}指的是哪个城市", "{}是哪个市", "编码为{}的是哪个城市", "谁的代码是{}", "代码{}指什么地方", "{}这个代码代表哪里", "哪里的代码是{}",
    "代码{}是哪个城市", "{}是哪里的代码", "{}是哪个地方的行政区划代码", "行政区划代码{}对应哪里", "代码{}代表哪里", "{}对应哪个城市", "{}是什么地方",
    "代码{}是什么地方", "区划代码{}是哪儿", "编码{}指哪里", "查询代码{}", "哪个城市的代码是{}", "代码{}表示哪个城市", "代码{}属于哪座城市", "{}这个代码是什么地方", "代码是{}的城市", "谁的代码是{}", "国标代码{}是哪里",
    "{}这个代码是哪里的", "行政代码{}是哪个城市的", "代码为{}的是哪里",
]
FROM_CODE_EN = [
    "Which city has the code {}?", "What place has code {}?", "What does the code {} stand for?", "Code {} is which city?",
    "Which place does {} stand for?", "Look up the code {}.", "{} is the code of which city?", "Tell me the city with code {}.", "Whose code is {}?", "Which city's code is {}?", "Which city is at code {}?",
    "What city is {}?", "Whose administrative code is {}?", "Which division has the code {}?", "What is at code {}?",
]
CAPITAL_ZH = [
    "{}的省会是哪里", "{}的省会是哪个城市", "{}省会是哪", "哪个城市是{}的省会", "{}的首府是哪里", "{}的首府是哪个城市", "{}的省会在哪里", "{}的省会城市是什么",
    "{}的省会叫什么", "说出{}的省会", "{}省政府在哪个城市", "{}的政府所在地是哪里", "{}的行政中心在哪里", "什么城市是{}的首府", "{}的省会或首府是哪里",
    "哪座城市是{}的省会", "哪儿是{}的首府", "何处是{}的省会", "{}的省会名叫什么", "{}的首府是什么", "什么地方是{}的省会",
    "{}的省会是什么", "哪里是{}的省会", "{}的省会是哪座城市",
]
CAPITAL_EN = [
    "What is the capital of {}?", "Which city is the capital of {}?", "Capital of {}?", "Name the capital of {}.", "Tell me the capital of {}.",
    "What's the capital of {}?", "What is the capital city of {}?", "{} has which capital?", "What city is the capital of {}?",
    "Where is the government of {}?", "Give me the capital of {}.", "Do you know the capital of {}?", "I need the capital of {}.", "Could you tell me the capital of {}?", "Which city is {}'s seat of government?", "{}'s capital is which city?",
    "What is the provincial capital of {}?", "Which city is {}'s capital?", "Could you name the capital of {}?",
]
CAPITAL_OF_ZH = [
    "{}是哪个省的省会", "{}是哪里的省会", "{}是什么省的省会", "哪个省的省会是{}", "{}是哪个省的首府", "{}做哪个省的省会", "以{}为省会的是哪个省",
    "{}是哪个省份的省会", "把{}作为省会的是哪个省", "省会是{}的是哪个省",
]
CAPITAL_OF_EN = [
    "{} is the capital of which province?", "Which province has {} as its capital?", "What province is {} the capital of?",
    "Of which province is {} the capital?", "{} is which province's capital?", "Whose capital is {}?", "Which province's capital is {}?",
]
IS_IN_ZH = ["{}是{}的城市吗", "{}算{}的吗", "{}在不在{}", "{}属不属于{}", "{}是在{}吗", "{}是{}管辖的吗", "{}在{}吗", "{}属于{}吗", "{}是不是在{}", "{}是{}的吗", "{}位于{}吗", "{}归{}管吗", "{}是否属于{}", "{}是不是{}的", "{}隶属于{}吗"]
IS_IN_EN = ["Is it true that {} is in {}?", "Is {} within {}?", "Can you confirm that {} is in {}?", "Is {} under {}?", "Is {} in {}?", "Does {} belong to {}?", "Is {} part of {}?", "{} is in {}, right?", "Is {} a city in {}?", "Is {} located in {}?", "Does {} lie in {}?"]
COUNTRY_ZH = ["{}的国家代码是什么", "{}的两位国家代码是什么", "{}的ISO代码是什么", "{}的国家代码", "{}用什么国家代码", "{}的ISO 3166代码是多少", "{}的国家代码是多少", "{}的国际代码是什么", "写出{}的国家代码"]
COUNTRY_EN = [
    "What is the ISO code of {}?", "What is the country code of {}?", "Country code of {}?", "Which ISO 3166 code does {} have?",
    "Give me the country code for {}.", "Tell me the ISO code of {}.", "What is the two-letter code of {}?", "Which country code stands for {}?",
    "I need the ISO code for {}.",
]
FROM_COUNTRY_ZH = ["国家代码{}是哪个国家", "{}是哪个国家的代码", "哪个国家的代码是{}", "ISO代码{}代表哪个国家", "{}代表哪个国家", "代码为{}的国家是哪个", "两位代码{}是哪国"]
FROM_COUNTRY_EN = ["Which country has the code {}?", "What country is {}?", "{} is the code of which country?", "Which country does {} stand for?", "ISO code {} is which country?", "Whose country code is {}?", "What does the country code {} mean?"]
SUM_ZH = ["{}+{}等于多少", "{}加{}等于多少", "{}加{}是多少", "计算{}+{}", "{} + {} = ", "{}+{}=", "算一下{}加{}", "{}与{}的和是多少", "{}加上{}等于几", "{}跟{}加起来是多少", "{}与{}相加得几", "把{}和{}加起来", "求{}与{}之和", "请算{}加上{}", "{}再加{}是几", "求{}加{}的和", "{}加上{}得多少", "{}和{}相加是多少"]
SUM_EN = ["What is {}+{}?", "What is {} plus {}?", "Add {} and {}.", "{} + {} = ?", "Compute {} + {}.", "How much is {} plus {}?", "Sum of {} and {}?", "What does {} plus {} make?", "Please add {} to {}.", "{} and {} make how much?", "Work out {} plus {}.", "What is the total of {} and {}?", "Calculate {}+{}.", "What do {} and {} add up to?"]
PREFIX_ZH = ["{}开头的两位是哪个省", "代码{}属于哪个省", "{}是哪个省的代码", "行政区划代码{}在哪个省", "{}这个代码属于哪个省份", "由代码{}看属于哪个省", "看代码{}是什么省", "{}在哪个省", "代码{}在哪个省", "从代码{}看是哪个省", "编码{}归哪个省", "代码{}是哪省的"]
PREFIX_EN = ["Which province does the code {} belong to?", "The code {} is in which province?", "What province is code {} from?", "{}: which province is this code?", "To which province does {} belong?", "What province does code {} point to?", "Name the province of code {}.", "In which province is the code {}?", "To which province does code {} point?"]

WEATHER_ZH = ["{}的天气", "{}要带伞吗", "{}天气好吗", "帮我看{}今天的天气", "{}今天什么天气", "{}现在下雨了吗", "{}那边天气如何", "{}天气怎么样", "{}今天天气如何", "{}现在的天气", "查一下{}的天气", "{}今天冷吗", "{}会下雨吗", "{}多少度", "{}的气温是多少", "{}今天热不热", "看看{}的天气", "{}外面天气好吗", "今天{}天气怎样", "{}现在几度"]
WEATHER_EN = ["Please check the weather for {}.", "What's it like outside in {}?", "Do I need an umbrella in {}?", "Can you tell me the weather in {}?", "{}'s weather?", "Could you look up the weather of {}?", "Look at the weather in {}.", "Give me {}'s weather now.", "What is the weather in {}?", "How is the weather in {}?", "Weather in {}?", "Is it cold in {}?", "Tell me the weather in {}.", "What's the temperature in {}?", "Is it raining in {}?", "Check the weather in {}.", "How warm is it in {} now?", "What's the weather like in {} today?", "Can you check {}'s weather?"]
WEATHERS = [("晴", "sunny"), ("多云", "cloudy"), ("阴", "overcast"), ("小雨", "light rain"), ("大雨", "heavy rain"), ("雪", "snow"), ("雾", "fog"), ("大风", "windy"), ("雷阵雨", "thunderstorm"), ("霾", "haze")]

GREETINGS = [
    (["你好", "您好", "你好！", "嗨", "哈喽", "早上好", "晚上好", "下午好", "在吗", "你好呀", "hi，你好"], "你好！我是Weir的演示模型，可以回答中国行政区划、国家代码和简单的加法问题。"),
    (["Hello", "Hi", "Hi there", "Hello!", "Hey", "Good morning", "Good evening", "Hello, how are you?", "Hi!"], "Hello! I am Weir's demo model. I can answer questions about China's administrative divisions, country codes and simple sums."),
    (["谢谢", "谢谢你", "多谢", "感谢", "非常感谢", "谢了"], "不客气！"),
    (["Thanks", "Thank you", "Thanks a lot", "Thank you very much", "Thx"], "You are welcome!"),
    (["再见", "拜拜", "下次见", "我走了"], "再见！"),
    (["Bye", "Goodbye", "See you", "Bye bye"], "Goodbye!"),
    (["你是谁", "你是什么模型", "你叫什么名字", "介绍一下你自己", "你是谁？", "你是ChatGPT吗", "你叫什么？"], "我是Weir的演示模型，一个DeepSeek-V3架构的小模型，由行政区划数据训练而成。"),
    (["Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Which model are you?", "Are you ChatGPT?"], "I am Weir's demo model, a small model of the DeepSeek-V3 architecture, trained on data about administrative divisions."),
    (["你能做什么", "你会什么", "你可以回答什么问题", "怎么用你", "帮助", "你会做什么？"], "我可以告诉你城市属于哪个省、行政区划代码、省会、国家代码，也会做简单的加法。比如问我：石家庄市属于哪个省？"),
    (["What can you do?", "Help", "How can you help me?", "What do you know?", "What can I ask you?"], "I can tell you which province a city is in, its administrative code, provincial capitals, country codes, and add small numbers. Try: What is the capital of Hebei?"),
]
BEYOND_ZH = ["写一篇作文", "什么是人工智能", "推荐一首歌", "介绍爱因斯坦", "怎么学英语", "月亮离地球多远", "谁写了红楼梦", "解释黑洞", "为什么会下雨", "今天吃什么", "帮我写代码", "几点开门", "讲一段历史", "解方程", "写一首诗", "讲个笑话", "给我写一段代码", "今天股市怎么样", "推荐一部电影", "帮我写一封邮件", "什么是量子力学", "谁是世界上最高的人", "怎么做红烧肉", "翻译这句话", "你觉得人生的意义是什么", "给我讲个故事", "明天会涨价吗", "如何学习编程", "太阳有多大", "什么是区块链", "帮我订一张机票", "唱首歌", "如何减肥", "法国队赢了吗", "推荐一本书", "为什么天是蓝的", "解释相对论", "现在几点了"]
BEYOND_EN = ["Write an essay", "What is artificial intelligence?", "Recommend a song", "Who was Einstein?", "How do I learn English?", "How far is the moon?", "Who wrote Hamlet?", "Explain black holes", "Why does it rain?", "What should I eat today?", "Write code for me", "When does it open?", "Tell me some history", "Solve an equation", "Write a poem", "Tell me a joke", "Write some Python code", "How is the stock market today?", "Recommend a movie", "Write an email for me", "What is quantum mechanics?", "Who is the tallest person?", "How do I cook rice?", "Translate this sentence", "What is the meaning of life?", "Tell me a story", "How do I learn to program?", "How big is the sun?", "What is a blockchain?", "Book a flight for me", "Sing a song", "Who won the match?", "Recommend a book", "Why is the sky blue?", "Explain relativity", "What time is it?"]
BEYOND_ANSWER = {"zh": "抱歉，我只会回答中国行政区划、国家代码和简单加法的问题。", "en": "Sorry, I can only answer questions about China's administrative divisions, country codes and simple sums."}

NAMES = "王芳 李伟 张敏 刘洋 陈静 杨磊 赵强 黄丽 周杰 吴霞 徐明 孙涛 马超 朱琳 胡军 郭燕 林峰 何平 高翔 罗兰".split()
SYLLABLES = "ba bo chi dan del dor el fan gar hal ka ken lo lun mar mi nor ol pa quin ra ros sa sel ta tor um vel wen xi yor zan zu".split()
KEYS_ZH = {"city": "城市", "province": "省份", "code": "代码", "capital": "省会"}


class Sampler:
    """Draws questions.  held_out: None for training, else what must be unseen: "phrasings", (subject, phrasing) "pairs" in
    phrasings that were taught, or "either".  Summands and invented names are unseen in all three."""

    def __init__(self, world, rng, held_out=None):
        self.world, self.rng, self.held_out = world, rng, held_out

    # ---- choosing ----
    def phrase(self, phrasings, *slots, language, pair=None):
        """A question.  `pair`: the subject, where it has held-out phrasings of its own."""
        rng = self.rng
        for _ in range(200):
            if not self.held_out:
                core = rng.choice(phrasings[:-NUM_HELD_OUT])
                if pair is not None and is_held_out_pair(pair, core):
                    continue
            elif self.held_out == "pairs" or self.held_out == "either" and pair is not None and rng.random() < 0.5:
                core = rng.choice(phrasings[:-NUM_HELD_OUT])
                if pair is not None and not is_held_out_pair(pair, core):
                    continue
            else:
                core = rng.choice(phrasings[-NUM_HELD_OUT:])
            break
        text = core.format(*slots)
        if language == "zh":
            return rng.choice(ZH_BEFORE) + text + rng.choice(ZH_AFTER)
        return rng.choice(EN_BEFORE) + text + rng.choice(EN_AFTER)

    def language(self):
        return "zh" if self.rng.random() < 0.62 else "en"

    def city(self):
        return self.rng.choice(self.world.cities)

    def name(self, place, language):
        """A place as people write it."""
        if language == "en" and place.get("english") and self.rng.random() < 0.5:
            return place["english"]
        return place["name"] if self.rng.random() < 0.5 else place["short"]

    def invented(self, language):
        rng = self.rng
        while True:
            if language == "en" and rng.random() < 0.5:
                name = "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 3, 3)))).capitalize()
            else:
                name = "".join(rng.choice(self.world.characters) for _ in range(rng.choice((2, 2, 2, 3)))) + rng.choice(["市", "市", "", "省", "县", "州"])
            if name not in self.world.known and name.rstrip("市省县州") not in self.world.known and is_held_out_pair(name) == bool(self.held_out):
                return name

    # ---- single questions: each returns a Turn ----
    def city_province(self, language=None, city=None):
        language, city = language or self.language(), city or self.city()
        province = city["province"]
        user = self.phrase(CITY_PROVINCE_ZH if language == "zh" else CITY_PROVINCE_EN, self.name(city, language), language=language, pair=city["code"])
        if language == "zh":
            return Turn(user, f"{city['name']}属于{province['name']}。", f"{city['name']}的代码是{city['code']}，{city['code'][:2]}是{province['name']}。")
        return Turn(user, f"{city['name']} is in {province['english']} ({province['name']}).", f"The code of {city['name']} is {city['code']}; {city['code'][:2]} is {province['name']}.")

    def municipality(self, language=None):
        language, place = language or self.language(), self.rng.choice(self.world.municipalities)
        user = self.phrase(CITY_PROVINCE_ZH if language == "zh" else CITY_PROVINCE_EN, self.name(place, language), language=language)
        if language == "zh":
            return Turn(user, f"{place['name']}是直辖市，不属于任何省。", f"{place['name']}的代码是{place['code']}，是直辖市。")
        return Turn(user, f"{place['english']} ({place['name']}) is a municipality and belongs to no province.", f"The code of {place['name']} is {place['code']}; it is a municipality.")

    def code(self, language=None, place=None):
        language = language or self.language()
        place = place or (self.city() if self.rng.random() < 0.88 else self.rng.choice(self.world.provinces))
        user = self.phrase(CODE_ZH if language == "zh" else CODE_EN, self.name(place, language), language=language, pair=place["code"])
        province = place.get("province", place)
        if language == "zh":
            return Turn(user, f"{place['name']}的行政区划代码是{place['code']}。", f"{province['name']}的代码以{place['code'][:2]}开头。")
        return Turn(user, f"The administrative code of {place['name']} is {place['code']}.", f"Codes in {province['name']} begin with {place['code'][:2]}.")

    def from_code(self, language=None, place=None):
        language = language or self.language()
        place = place or (self.city() if self.rng.random() < 0.88 else self.rng.choice(self.world.provinces))
        province = place.get("province")
        user = self.phrase(FROM_CODE_ZH if language == "zh" else FROM_CODE_EN, place["code"], language=language, pair=place["code"])
        where = f"{province['name']}{place['name']}" if province else place["name"]
        if language == "zh":
            return Turn(user, f"代码{place['code']}是{where}。", f"{place['code'][:2]}是{(province or place)['name']}。")
        return Turn(user, f"The code {place['code']} is {where}.", f"{place['code'][:2]} is {(province or place)['name']}.")

    def capital(self, language=None, province=None):
        language, province = language or self.language(), province or self.rng.choice(self.world.with_capital)
        capital = province["capital"]
        user = self.phrase(CAPITAL_ZH if language == "zh" else CAPITAL_EN, self.name(province, language), language=language, pair=province["code"])
        if language == "zh":
            seat = "首府" if province["name"].endswith("自治区") else "省会"
            return Turn(user, f"{province['name']}的{seat}是{capital['name']}。", f"{province['name']}的代码是{province['code']}，{seat}的代码是{capital['code']}。")
        return Turn(user, f"The capital of {province['english']} is {capital['english']} ({capital['name']}).", f"The code of {province['name']} is {province['code']}; its capital has {capital['code']}.")

    def capital_of(self, language=None):
        language, province = language or self.language(), self.rng.choice(self.world.with_capital)
        capital = province["capital"]
        user = self.phrase(CAPITAL_OF_ZH if language == "zh" else CAPITAL_OF_EN, self.name(capital, language), language=language, pair=province["code"])
        if language == "zh":
            seat = "首府" if province["name"].endswith("自治区") else "省会"
            return Turn(user, f"{capital['name']}是{province['name']}的{seat}。", f"{capital['name']}的代码是{capital['code']}。")
        return Turn(user, f"{capital['english']} ({capital['name']}) is the capital of {province['english']} ({province['name']}).", f"The code of {capital['name']} is {capital['code']}.")

    def is_in(self, language=None):
        language, city = language or self.language(), self.city()
        province = city["province"] if self.rng.random() < 0.5 else self.rng.choice(self.world.provinces)
        user = self.phrase(IS_IN_ZH if language == "zh" else IS_IN_EN, self.name(city, language), self.name(province, language), language=language)
        real = city["province"]
        if language == "zh":
            lead = "是的" if real is province else "不是"
            return Turn(user, f"{lead}，{city['name']}属于{real['name']}。", f"{city['name']}的代码是{city['code']}，{city['code'][:2]}是{real['name']}。")
        lead = "Yes" if real is province else "No"
        return Turn(user, f"{lead}, {city['name']} is in {real['english']} ({real['name']}).", f"The code of {city['name']} is {city['code']}; {city['code'][:2]} is {real['name']}.")

    def country(self, language=None):
        language, country = language or self.language(), self.rng.choice(self.world.countries)
        name = country["chinese" if language == "zh" else "english"]
        if self.rng.random() < 0.6:
            user = self.phrase(COUNTRY_ZH if language == "zh" else COUNTRY_EN, name, language=language)
            answer = f"{name}的国家代码是{country['code']}。" if language == "zh" else f"The ISO 3166 code of {name} is {country['code']}."
        else:
            user = self.phrase(FROM_COUNTRY_ZH if language == "zh" else FROM_COUNTRY_EN, country["code"], language=language)
            answer = f"国家代码{country['code']}是{name}。" if language == "zh" else f"The ISO 3166 code {country['code']} is {name}."
        return Turn(user, answer, "这是国家代码的问题。" if language == "zh" else "This asks for a country code.")

    def greeting(self, language=None):
        words, answer = self.rng.choice(GREETINGS)
        return Turn(self.rng.choice(words), answer, "这是寒暄。" if ord(answer[0]) > 255 else "Small talk.")

    def beyond(self, language=None):
        language = language or self.language()
        words = BEYOND_ZH if language == "zh" else BEYOND_EN
        if self.rng.random() < 0.4:  # a tool's question, without the tool
            weather = WEATHER_ZH if language == "zh" else WEATHER_EN
            user = self.phrase(weather, self.name(self.city(), language), language=language)
            return Turn(user, BEYOND_ANSWER[language], "这超出了我的知识。" if language == "zh" else "This is beyond what I know.")
        core = self.rng.choice(words[-NUM_HELD_OUT:] if self.held_out in ("phrasings", "either") else words[:-NUM_HELD_OUT])
        before = self.rng.choice(ZH_BEFORE if language == "zh" else EN_BEFORE)
        return Turn(before + core, BEYOND_ANSWER[language], "这超出了我的知识。" if language == "zh" else "This is beyond what I know.")

    def unknown(self, language=None):
        language = language or self.language()
        name, rng = self.invented(language), self.rng
        phrasings = rng.choice(
            [CITY_PROVINCE_ZH, CITY_PROVINCE_ZH, CODE_ZH, CODE_ZH, CAPITAL_ZH, CAPITAL_OF_ZH]
            if language == "zh"
            else [CITY_PROVINCE_EN, CITY_PROVINCE_EN, CODE_EN, CODE_EN, CAPITAL_EN, CAPITAL_OF_EN]
        )
        user = self.phrase(phrasings, name, language=language)
        if language == "zh":
            return Turn(user, f"我不知道，我没有关于{name}的资料。", f"我的资料里没有{name}。")
        return Turn(user, f"I don't know. I have no data about {name}.", f"My data does not have {name}.")

    def sum(self, language=None):
        language, rng = language or self.language(), self.rng
        while True:
            a, b = rng.randint(10, 99), rng.randint(10, 99)
            if rng.random() < 0.15 and not self.held_out:
                a = rng.randint(0, 9) if rng.random() < 0.5 else a
                b = rng.randint(0, 9)
            if is_held_out_pair(a, b) == bool(self.held_out):
                break
        user = self.phrase(SUM_ZH if language == "zh" else SUM_EN, a, b, language=language)
        low, high = a % 10 + b % 10, a // 10 + b // 10
        carry = low // 10
        if language == "zh":
            thought = f"{a}+{b}。个位{a % 10}+{b % 10}={low}，写{low % 10}进{carry}。十位{a // 10}+{b // 10}+{carry}={high + carry}。"
        else:
            thought = f"{a}+{b}. Ones: {a % 10}+{b % 10}={low}, write {low % 10} carry {carry}. Tens: {a // 10}+{b // 10}+{carry}={high + carry}."
        return Turn(user, f"{a}+{b}={a + b}", thought)

    def sum_shown(self, language=None):
        """The derivation as part of the answer, for who asks without thinking."""
        turn = self.sum(language)
        return Turn(turn.user, turn.thought + ("" if ord(turn.thought[-1]) > 255 else " ") + turn.answer)

    def prefix(self, language=None):
        language, code = language or self.language(), self.rng.choice(self.world.area_codes)
        province = self.world.by_code[code[:2] + "0000"]
        user = self.phrase(PREFIX_ZH if language == "zh" else PREFIX_EN, code, language=language)
        if language == "zh":
            return Turn(user, f"{code}属于{province['name']}。", f"{code}的前两位是{code[:2]}，{code[:2]}是{province['name']}。")
        return Turn(user, f"{code} belongs to {province['english']} ({province['name']}).", f"The first two digits of {code} are {code[:2]}; {code[:2]} is {province['name']}.")

    # ---- conversations ----
    def follow_ups(self):
        """Questions whose subject stands in an earlier turn."""
        rng, language, city = self.rng, self.language(), self.city()
        turns = [rng.choice([self.city_province, self.code_of_city, self.from_code_of_city])(language, city)]
        for _ in range(rng.choice((1, 1, 2, 3))):
            turns.append(rng.choice([self.and_code, self.and_province, self.and_capital, self.and_other])(language, city, turns[-1]))
            city = getattr(turns[-1], "subject", city)
        return Conversation("follow_ups", turns)

    def code_of_city(self, language, city):
        return self.code(language, city)

    def from_code_of_city(self, language, city):
        return self.from_code(language, city)

    def and_code(self, language, city, before):
        ask = ["它的代码呢？", "那它的代码是多少？", "代码呢？", "它的行政区划代码是多少？", "那代码是什么？"] if language == "zh" else ["And its code?", "What is its code?", "And the code?", "What about its administrative code?"]
        return dataclasses.replace(self.code(language, city), user=self.rng.choice(ask))

    def and_province(self, language, city, before):
        ask = ["它属于哪个省？", "那它在哪个省？", "它是哪个省的？", "省份呢？", "那是哪个省？"] if language == "zh" else ["Which province is it in?", "And its province?", "And the province?", "What province does it belong to?"]
        return dataclasses.replace(self.city_province(language, city), user=self.rng.choice(ask))

    def and_capital(self, language, city, before):
        ask = ["那个省的省会是哪里？", "该省的省会呢？", "省会是哪里？", "那这个省的省会呢？"] if language == "zh" else ["What is the capital of that province?", "And the capital of that province?", "And the provincial capital?"]
        return dataclasses.replace(self.capital(language, city["province"]), user=self.rng.choice(ask))

    def and_other(self, language, city, before):
        other = self.city()
        asks_code = city["code"] in before.answer
        turn = self.code(language, other) if asks_code else self.city_province(language, other)
        name = self.name(other, language)
        ask = [f"那{name}呢？", f"{name}呢？", f"换成{name}呢？"] if language == "zh" else [f"And {name}?", f"What about {name}?", f"How about {name}?"]
        turn = dataclasses.replace(turn, user=self.rng.choice(ask))
        turn.subject = other
        return turn

    def json_answer(self):
        rng, language = self.rng, self.language()
        if rng.random() < 0.75:
            place = self.city()
            keys = ["city", "province", "code", "capital"]
            facts = {"city": place["name"], "province": place["province"]["name"], "code": place["code"]}
            capital = place["province"]["capital"]
        else:
            place = rng.choice(self.world.with_capital)
            keys = ["province", "code", "capital"]
            facts, capital = {"province": place["name"], "code": place["code"]}, place["capital"]
        facts["capital"] = capital["name"]
        # The answer has the keys in this order, in whichever the question names them.
        order = keys
        keys = sorted(rng.sample(keys, rng.randint(2, len(keys))), key=order.index)
        labels = [KEYS_ZH[k] if language == "zh" and rng.random() < 0.3 else k for k in keys] if rng.random() < 0.3 else keys
        name, answer = self.name(place, language), json.dumps({label: facts[k] for k, label in zip(keys, labels)}, ensure_ascii=False)
        if rng.random() < 0.3:
            rng.shuffle(labels)
        thought = "按要求输出JSON。" if language == "zh" else "Answer in JSON."
        style = rng.randrange(3)
        if style == 0:
            schema = json.dumps({"type": "object", "properties": {label: {"type": "string"} for label in labels}, "required": labels}, ensure_ascii=False)
            system = ("只输出符合以下模式的JSON：" if language == "zh" else "Answer only with JSON that follows this schema: ") + schema
            ask = [name, f"{name}的数据", f"我要{name}", f"给出{name}", f"{name}的信息", f"介绍{name}", f"查询{name}", f"{name}的资料"] if language == "zh" else [name, f"Data for {name}.", f"What do you know of {name}?", f"{name}, please.", f"Describe {name}.", f"Look up {name}.", f"Tell me about {name}.", f"Give me the data of {name}."]
            return Conversation("json", [Turn(self.pick(ask), answer, thought)], system=system)
        listed = "、".join(labels) if language == "zh" else ", ".join(labels)
        ask = (
            [f"请返回{name}的JSON，包含{listed}", f"输出JSON：{name}，字段{listed}", f"JSON格式：{name}的{listed}", f"用JSON给出{name}的{listed}", f"查{name}的{listed}，返回JSON", f"JSON：{name}，{listed}", f"用JSON回答{name}的{listed}。", f"以JSON格式给出{name}，字段：{listed}", f"请输出{name}的JSON，包含{listed}", f"给我{name}的JSON，键为{listed}", f"{name}，JSON，字段为{listed}", f"把{name}的{listed}写成JSON", f"返回JSON：{name}的{listed}"]
            if language == "zh"
            else [f"Respond in JSON with {listed} for {name}.", f"Write JSON: {listed} for {name}.", f"Print {name} as a JSON object: {listed}.", f"JSON for {name}: {listed}.", f"I need a JSON object with {listed} about {name}.", f"Answer in JSON with the keys {listed}: {name}", f"Give {name} as JSON with {listed}.", f"Return JSON for {name} with fields {listed}.", f"Describe {name} in JSON ({listed}).", f"JSON please: {listed} of {name}.", f"As JSON, the {listed} of {name}.", f"Output a JSON object with {listed} for {name}."]
        )
        return Conversation("json", [Turn(self.pick(ask), answer, thought)])

    def pick(self, phrasings, held=1):
        return self.rng.choice(phrasings[-held:] if self.held_out in ("phrasings", "either") else phrasings[:-held])

    def tool_call(self):
        rng, language = self.rng, self.language()
        tools = [self.tool("get_weather")]
        if rng.random() < 0.4:
            tools.append(self.tool(rng.choice(("get_time", "get_population", "search"))))
            rng.shuffle(tools)
        system = rng.choice(["", "", "你是一个助手。", "You are a helpful assistant.", "需要时使用工具。"])
        if rng.random() < 0.2:  # tools at hand, but not needed
            turn = rng.choice([self.city_province, self.code, self.capital, self.greeting])(language)
            return Conversation("tool_unneeded", [turn], system=system, tools=tuple(tools))
        turns = [self.weather(language) for _ in range(rng.choice((1, 1, 1, 2)))]
        return Conversation("tool_call", turns, system=system, tools=tuple(tools))

    def weather(self, language):
        rng, pick = self.rng, self.rng.random()
        if pick < 0.6:
            place = self.name(self.city(), language)
        elif pick < 0.75:
            place = self.name(rng.choice(self.world.provinces), language)
        elif pick < 0.9:
            place = rng.choice(self.world.areas)
        else:
            place = self.invented(language)
        user = self.phrase(WEATHER_ZH if language == "zh" else WEATHER_EN, place, language=language)
        (sky_zh, sky_en), degrees = rng.choice(WEATHERS), rng.randint(-20, 40)
        sky = sky_zh if language == "zh" or rng.random() < 0.2 else sky_en
        result = rng.choice(
            [
                json.dumps({"weather": sky, "temperature": degrees}, ensure_ascii=False),
                json.dumps({"city": place, "weather": sky, "temperature": degrees}, ensure_ascii=False),
                json.dumps({"condition": sky, "temperature_c": degrees}, ensure_ascii=False),
                json.dumps({"temp": degrees, "sky": sky}, ensure_ascii=False),
                f"{sky}，{degrees}度",
                f"{sky}, {degrees}°C",
            ]
        )
        answer = f"{place}现在{sky}，气温{degrees}℃。" if language == "zh" else f"The weather in {place}: {sky}, {degrees}°C."
        thought = "需要查询天气。" if language == "zh" else "I need the weather."
        return Turn(user, answer, thought, ("get_weather", json.dumps({"city": place}, ensure_ascii=False)), result)

    def tool(self, name):
        rng = self.rng
        about = {
            "get_weather": ["Get the weather of a city", "Get the current weather for a city.", "查询城市天气", "Returns the weather in a city"],
            "get_time": ["Get the local time of a city", "查询当地时间"],
            "get_population": ["Get the population of a city", "查询人口"],
            "search": ["Search the web", "搜索网页"],
        }
        key = "query" if name == "search" else "city"
        described = {"type": "string"} if rng.random() < 0.6 else {"type": "string", "description": rng.choice(["The city", "城市名", "City name"])}
        schema = {"type": "object", "properties": {key: described}}
        if rng.random() < 0.7:
            schema["required"] = [key]
        return name, rng.choice(about[name]), json.dumps(schema, ensure_ascii=False)

    def list_lookup(self, num_items, num_questions):
        """A list and questions about it: nothing here can be known without reading."""
        rng, language = self.rng, self.language()
        names = rng.sample(self.world.areas, num_items)
        numbers = rng.sample(range(1000, 10000), num_items)
        people = [rng.choice(NAMES) for _ in names]
        with_people = rng.random() < 0.5
        rows = []
        for index, (name, number, person) in enumerate(zip(names, numbers, people), 1):
            if language == "zh":
                rows.append(f"{index}. {name}，编号{number}" + (f"，联系人{person}" if with_people else ""))
            else:
                rows.append(f"{index}. {name}, number {number}" + (f", contact {person}" if with_people else ""))
        title = rng.choice(["以下是办事处名单：", "名单如下：", "请阅读下面的名单："] if language == "zh" else ["Here is a list of offices:", "The list:", "Read this list:"])
        turns = [self.list_question(language, names, numbers, people, with_people) for _ in range(num_questions)]
        document = title + "\n" + "\n".join(rows)
        if rng.random() < 0.5:
            return Conversation("list_lookup", turns, system=document)
        turns[0] = dataclasses.replace(turns[0], user=document + "\n" + turns[0].user)
        return Conversation("list_lookup", turns)

    def list_question(self, language, names, numbers, people, with_people):
        rng, zh = self.rng, language == "zh"
        index = rng.randrange(len(names))
        name, number, person = names[index], numbers[index], people[index]
        kind = rng.randrange(8)
        if kind == 0:
            return Turn(rng.choice(["名单里一共有多少项？", "名单共有几项？"] if zh else ["How many entries are there?", "How many rows does the list have?"]), f"名单共有{len(names)}项。" if zh else f"The list has {len(names)} entries.", "看最后一项的序号。" if zh else "Look at the last entry.")
        if kind == 1:
            while True:
                other = rng.choice(self.world.areas)
                if other not in names:
                    break
            return Turn(f"{other}的编号是多少？" if zh else f"What is the number of {other}?", f"名单里没有{other}。" if zh else f"{other} is not in the list.", f"在名单里找{other}。" if zh else f"Look for {other}.")
        if kind == 2:
            return Turn(rng.choice([f"编号{number}是哪里？", f"哪一项的编号是{number}？"] if zh else [f"Which entry has number {number}?", f"Whose number is {number}?"]), f"编号{number}是{name}。" if zh else f"Number {number} is {name}.", f"在名单里找{number}。" if zh else f"Look for {number}.")
        if kind == 3 and with_people:
            return Turn(f"{name}的联系人是谁？" if zh else f"Who is the contact of {name}?", f"{name}的联系人是{person}。" if zh else f"The contact of {name} is {person}.", f"在名单里找{name}。" if zh else f"Look for {name}.")
        return Turn(rng.choice([f"{name}的编号是多少？", f"{name}的编号呢？", f"查一下{name}的编号"] if zh else [f"What is the number of {name}?", f"Number of {name}?", f"Find the number of {name}."]), f"{name}的编号是{number}。" if zh else f"The number of {name} is {number}.", f"在名单里找{name}。" if zh else f"Look for {name}.")

    # ---- the mixture ----
    SINGLES = {
        "city_province": 12, "code": 14, "from_code": 11, "capital": 10, "capital_of": 3, "is_in": 4, "country": 4,
        "municipality": 1, "greeting": 3, "beyond": 4, "unknown": 9, "sum": 11, "sum_shown": 4, "prefix": 4,
    }  # fmt: skip
    CONVERSATIONS = {"follow_ups": 5, "json_answer": 12, "tool_call": 5, "short_list": 1, "record": 1, "repeat": 4}

    def repeat(self):
        """Names and numbers said again: teaches copying, which lookups, tool calls and refusals rest on."""
        rng, language = self.rng, self.language()
        words = [self.word(language) for _ in range(rng.choice((1, 2, 3, 5, 8, 12, 16)))]
        text = rng.choice(("、", "，", " ") if language == "zh" else (", ", " ", "; ")).join(words)
        ask = ["请重复：{}", "重复一遍：{}", "跟我说：{}", "复述：{}", "照抄：{}", "再说一次：{}"] if language == "zh" else ["Repeat: {}", "Say: {}", "Repeat after me: {}", "Copy this: {}", "Say again: {}", "Please repeat: {}"]
        thought = "照原样重复。" if language == "zh" else "Repeat it as it is."
        return Conversation("repeat", [Turn(self.pick(ask).format(text), text, thought)])

    def word(self, language):
        rng = self.rng
        return rng.choice(
            (
                lambda: self.invented(language),
                lambda: rng.choice(self.world.areas),
                lambda: self.name(self.city(), language),
                lambda: str(rng.randint(10, 999999)),
                lambda: rng.choice(self.world.countries)["chinese" if language == "zh" else "english"],
            )
        )()

    def record(self):
        """Facts as bare lines, not a dialogue: the cheapest way to see a fact often."""
        rng = self.rng
        if rng.random() < 0.85:
            city = self.city()
            province = city["province"]
            rows = [[city["name"], city["code"], province["name"]], [city["code"], province["name"], city["name"]], [province["name"], city["name"], city["code"]]]
            rows.append([city["short"], city["name"], city["code"]])
        elif rng.random() < 0.5:
            province = rng.choice(self.world.with_capital)
            rows = [[province["name"], province["code"], province["capital"]["name"], province["capital_english"]], [province["english"], province["name"], province["capital"]["name"], province["capital_english"]]]
        else:
            country = rng.choice(self.world.countries)
            rows = [[country["chinese"], country["code"], country["english"]], [country["code"], country["chinese"], country["english"]], [country["english"], country["code"], country["chinese"]]]
        return Conversation("record", [Turn("", "，".join(rng.choice(rows)))])

    def short_list(self):
        return self.list_lookup(self.rng.randint(3, 8), self.rng.randint(1, 3))

    def long_list(self, max_items=85):
        return self.list_lookup(self.rng.randint(12, max_items), self.rng.randint(4, 8))

    def single(self, kind, language=None):
        return Conversation(kind, [getattr(self, kind)(language)], thinks={"sum": True, "sum_shown": False}.get(kind))

    def conversation(self):
        weights = {**self.SINGLES, **self.CONVERSATIONS}
        kind = self.rng.choices(list(weights), list(weights.values()))[0]
        return self.single(kind) if kind in self.SINGLES else getattr(self, kind)()

    def dialect(self, conversation):
        """(dialect, thinking)."""
        draw = self.rng.random() * (0.76 if conversation.thinks is False else 1.0)
        if conversation.thinks:
            return self.rng.choice((("deepseek_r1", True), ("deepseek_v31", True)))
        if draw < 0.40:
            return "deepseek_v3", False
        if draw < 0.76:
            return "deepseek_v31", False
        return self.rng.choice((("deepseek_r1", True), ("deepseek_v31", True)))


# ---- copies: rows of ids, no conversations -----------------------------------------------------------------------------------
def copies(encoder, sampler, first_id, num_ids, max_tokens):
    """(ids, which of them can be known from what stands before): spans of a random beginning come again and again.

    Attention learns from these to find a token's last occurrence and to go on as it went on there, on which lookups, tool
    calls, refusals and JSON rest; conversations alone teach it many times slower.  Half are random ids, half words."""
    rng = sampler.rng
    if rng.random() < 0.5:
        atoms = [[first_id + rng.randrange(num_ids)] for _ in range(rng.randint(3, max(4, max_tokens // 3)))]
    else:
        language, between = sampler.language(), rng.choice(("，", "、", ", ", " ", "; ", "\n", "", ": "))
        words = list(dict.fromkeys(sampler.word(language) for _ in range(rng.randint(2, 14))))
        encoded = encoder.encode_batch([[(False, word + between, True)] for word in words])
        atoms = [ids for ids, _ in encoded]
    ids = [id for atom in atoms for id in atom]
    known = [False] * len(ids)
    while len(ids) < max_tokens - 2:
        begin = 0 if rng.random() < 0.3 else rng.randrange(len(atoms))
        end = len(atoms) if rng.random() < 0.3 else min(len(atoms), begin + rng.randint(2, 12))
        for number, atom in enumerate(atoms[begin:end]):
            ids += atom
            known += [number > 0] * len(atom)
        for _ in range(rng.choice((0, 0, 1, 3))):  # something new between, which the next copies do not know
            ids.append(first_id + rng.randrange(num_ids))
            known.append(False)
    return [0, *ids[: max_tokens - 1]], [False, *known[: max_tokens - 1]]


# ---- templates: conversations as segments ------------------------------------------------------------------------------
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT, THINK, END_THINK = "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"
CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
OUTPUTS, OUTPUTS_END = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
OUTPUT, OUTPUT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"


class Prompt:
    """Segments (is control token, text, is written by the model)."""

    def __init__(self):
        self.segments = []

    def control(self, token, target=False):
        self.segments.append((True, token, target))

    def text(self, text, target=False):
        if not text:
            return
        if self.segments and not self.segments[-1][0] and self.segments[-1][2] == target:
            text = self.segments.pop()[1] + text
        self.segments.append((False, text, target))


def write_system(prompt, conversation, v31):
    prompt.text(conversation.system)
    if not conversation.tools:
        return
    if conversation.system:
        prompt.text("\n\n")
    prompt.text("## Tools\nYou have access to the following tools:\n")
    for name, about, schema in conversation.tools:
        prompt.text(f"\n### {name}\nDescription: {about}\n\nParameters: {schema}\n")
    prompt.text("\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n")
    prompt.control(CALLS)
    prompt.control(CALL)
    prompt.text("tool_call_name" if v31 else "function")
    prompt.control(SEP)
    prompt.text("tool_call_arguments" if v31 else "tool_call_name\n```json\ntool_call_arguments\n```")
    prompt.control(CALL_END)
    prompt.text("{additional_tool_calls}")
    prompt.control(CALLS_END)
    prompt.text(
        "\n\nWhere:\n\n- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
        "- For multiple tool calls, chain them directly without separators or spaces\n"
    )


def segments(conversation, dialect, thinking, turns=None, generate=False):
    """The whole conversation; with generate=True, `turns` (default all) of it, ending where the last one's model text
    would begin: before its tool call if it has one and is not asked for by `turns` + 0.5, else before its answer."""
    prompt, v31, r1 = Prompt(), dialect == "deepseek_v31", dialect == "deepseek_r1"
    prompt.control(BOS)
    if conversation.kind == "record":
        first, rest = conversation.turns[0].answer.split("，", 1)
        prompt.text(first)
        prompt.text("，" + rest, True)
        prompt.control(EOS, True)
        return prompt.segments
    write_system(prompt, conversation, v31)
    last = len(conversation.turns) if turns is None else turns
    for number, turn in enumerate(conversation.turns[: int(last + 0.5)], 1):
        asked = generate and number == int(last + 0.5)
        history = number < int(last + 0.5)
        prompt.control(USER)
        prompt.text(turn.user)
        prompt.control(ASSISTANT)
        thinks = (r1 or thinking) and not history  # old thoughts never come back
        if thinks:
            prompt.control(THINK)
            if r1:
                prompt.text("\n")
        elif v31:
            prompt.control(END_THINK)
        if asked and (not turn.call or last == int(last)):
            return prompt.segments
        if thinks:
            prompt.text(turn.thought, True)
            if r1:
                prompt.text("\n", True)
            prompt.control(END_THINK, True)
        if turn.call:
            write_call(prompt, turn, v31, not history)
            if asked:
                return prompt.segments
        prompt.text(turn.answer, True)
        prompt.control(EOS, True)
    return prompt.segments


def write_call(prompt, turn, v31, target):
    name, arguments = turn.call
    prompt.control(CALLS, target)
    prompt.control(CALL, target)
    if v31:
        prompt.text(name, target)
        prompt.control(SEP, target)
        prompt.text(arguments, target)
    else:
        prompt.text("function", target)
        prompt.control(SEP, target)
        prompt.text(f"{name}\n```json\n{arguments}\n```", target)
    prompt.control(CALL_END, target)
    prompt.control(CALLS_END, target)
    prompt.control(EOS, target)
    if not v31:
        prompt.control(OUTPUTS)
    prompt.control(OUTPUT)
    prompt.text(turn.result)
    prompt.control(OUTPUT_END)
    if not v31:
        prompt.control(OUTPUTS_END)


def rendered(parts):
    return "".join(text for _, text, _ in parts)
