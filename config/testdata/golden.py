"""Writes golden.json: what oslo.config itself makes of configuration files.

Run it with the python3-oslo.config 9.0.0 of Debian 12, as root of that tree:
    chroot TREE python3 - < golden.py > golden.json
"""
import json
import os
import random
import sys
import tempfile

from oslo_config import cfg
from oslo_config import iniparser
from oslo_config import types
from oslo_config.version import version_info

OPTIONS = [
    # group, name, type, extra
    ("DEFAULT", "s", "str", {}),
    ("DEFAULT", "sd", "str", {"default": "fallback"}),
    ("DEFAULT", "ref", "str", {"default": "$s/x"}),
    ("DEFAULT", "i", "int", {}),
    ("DEFAULT", "bounded", "int", {"min": -1, "max": 10}),
    ("DEFAULT", "f", "float", {}),
    ("DEFAULT", "b", "bool", {"default": False}),
    ("DEFAULT", "l", "list", {}),
    ("DEFAULT", "m", "multi", {}),
    ("DEFAULT", "d", "dicts", {}),
    ("DEFAULT", "port", "port", {}),
    ("DEFAULT", "ip", "ip", {}),
    ("DEFAULT", "host", "host", {}),
    ("DEFAULT", "uri", "uri", {}),
    ("DEFAULT", "e", "str", {"choices": ["one", "two", ""]}),
    ("DEFAULT", "renamed", "str", {"deprecated": [["DEFAULT", "old_name"], ["legacy", "renamed"]]}),
    ("DEFAULT", "old_multi", "multi", {"deprecated": [["legacy", "older_multi"]]}),
    ("grp", "s", "str", {}),
    ("grp", "only", "str", {}),
    ("grp", "i", "int", {"default": 7}),
    ("grp", "l", "list", {}),
]


def oslo_opt(name, kind, extra):
    kw = {}
    if "default" in extra:
        kw["default"] = extra["default"]
    if "deprecated" in extra:
        kw["deprecated_opts"] = [cfg.DeprecatedOpt(n, group=g) for g, n in extra["deprecated"]]
    if kind == "str":
        return cfg.StrOpt(name, choices=extra.get("choices"), **kw)
    if kind == "int":
        return cfg.IntOpt(name, min=extra.get("min"), max=extra.get("max"), **kw)
    if kind == "dicts":
        return cfg.MultiOpt(name, item_type=types.Dict(), **kw)
    return {
        "float": cfg.FloatOpt, "bool": cfg.BoolOpt, "list": cfg.ListOpt, "multi": cfg.MultiStrOpt,
        "port": cfg.PortOpt, "ip": cfg.IPOpt, "host": cfg.HostDomainOpt, "uri": cfg.URIOpt,
    }[kind](name, **kw)


def in_files(files):
    paths = []
    for text in files:
        f = tempfile.NamedTemporaryFile("w", suffix=".conf", delete=False, newline="", encoding="utf-8")
        f.write(text)
        f.close()
        paths.append(f.name)
    return paths


def parse(text):
    """Sections as the parser collects them, or the line of the error."""
    path = in_files([text])[0]
    sections = {}
    parser = cfg.ConfigParser(path, sections)
    try:
        parser.parse()
    except iniparser.ParseError as e:
        return {"text": text, "error": e.lineno, "message": e.msg}
    finally:
        os.unlink(path)
    return {"text": text, "sections": sections}


def load(files, env=None):
    """Values of OPTIONS, or "error" for one that raises."""
    conf = cfg.ConfigOpts()
    for group, name, kind, extra in OPTIONS:
        conf.register_opt(oslo_opt(name, kind, extra), group=None if group == "DEFAULT" else group)
    paths = in_files(files)
    args = []
    for p in paths:
        args += ["--config-file", p]
    saved = dict(os.environ)
    os.environ.update(env or {})
    out = {}
    try:
        conf(args, project="golden", prog="golden")
        for group, name, kind, extra in OPTIONS:
            g = None if group == "DEFAULT" else conf._get_group(group)
            try:
                value = conf._get(name, g)
            except (Exception, RecursionError):
                out[group + "." + name] = {"error": True}
            else:
                out[group + "." + name] = {"value": value}
    finally:
        os.environ.clear()
        os.environ.update(saved)
        for p in paths:
            os.unlink(p)
    return {"files": files, "env": env or {}, "values": out}


PARSE = [
    "", "\n", "[a]", "[a]\n", "[a]\nk=v", "[a]\nk = v\n", "[a]\nk: v\n", "[a]\nk:v=w\n", "[a]\nk=v:w\n", "[a]\nk=\n", "[a]\nk = = v\n",
    "[a]\n=v\n", "[a]\n:v\n", "[a]\nkv\n", "k=v\n", "k=v\n[a]\n", "[a\n", "[]\n", "[a] # c\n", "[ a ]\nk=v\n", "[a]]\nk=v\n", "[[a]\nk=v\n",
    "[a]\nk=v # no comment\n", "[a]\nk=v ; no comment\n", "[a]\n#k=v\n", "[a]\n;k=v\n", "[a]\n #k=v\n", "[a]\nk=v\n #more\n",
    "[a]\nk=v\n more\n\tand more  \n", "[a]\nk=v\n more\n\n after\n", "[a]\nk=v\n more\n# c\n after\n", "[a]\nk=v\n   \n more\n",
    "[a]\nk=\n one\n two\n", "[a]\n  k=v\n", "  k=v\n", "[a]\nk='v'\n", "[a]\nk=\"v\"\n", "[a]\nk='v\"\n", "[a]\nk='\n", "[a]\nk=\"\n",
    "[a]\nk=''\n", "[a]\nk=''v''\n", "[a]\nk='v'\n 'w'\n", "[a]\nk=' v '\n", "[a]\nk=1\nk=2\n", "[a]\nk=1\n[b]\nk=2\n[a]\nk=3\n",
    "[a]\nK=1\nk=2\n", "[a]\nk k=v\n", "[a]\r\nk=v\r\n w\r\n", "[a]\rk=v\r", "[a]\nk=v\r\n\r\nl=w\n", "[a]\nk=v\x0b\n", "[a]\nk=\u00a0v\u00a0\n",
    "[a]\n\u00a0k=v\n", "[a]\nk=v\n\u00a0l=w\n", "[a]\nk=v\x1c\n", "[a]\nk=v\u2028w\n", "[a]\nk=\u00e4\u00f6\n", "\ufeff[a]\nk=v\n", "[a]\nk=v\x00w\n",
    "[a]\nk=v\x85\n", "[a]\n'k'=v\n", "[a]\nk=[v]\n", "[a]\nk=v\n[b]\n[c]\n", "[a]\nk=v\n\n\n\nl=w", "[DEFAULT]\nk=v\n[default]\nk=w\n",
]

RESOLVE = [
    ["[DEFAULT]\ns=1\n", "[DEFAULT]\ns=2\n"],
    ["[DEFAULT]\nm=1\nm=2\n", "[DEFAULT]\nm=3\n"],
    ["[DEFAULT]\nm=\nm=a\n"],
    ["[DEFAULT]\ns=1\ns=2\n"],
    ["[grp]\ns=1\n[GRP]\ns=2\n[Grp]\nl=a\n"],
    ["[GRP]\ns=2\n[grp]\nl=a\n"],
    ["[default]\ns=1\n"],
    ["[DEFAULT]\nS=1\n"],
    ["[DEFAULT]\nold_name=1\n"],
    ["[legacy]\nrenamed=1\n[DEFAULT]\nold_name=2\n"],
    ["[DEFAULT]\nrenamed=1\n", "[DEFAULT]\nold_name=2\n"],
    ["[DEFAULT]\nold_name=1\nrenamed=2\n"],
    ["[LEGACY]\nrenamed=9\n"],
    ["[DEFAULT]\nold_multi=1\n[legacy]\nolder_multi=2\n", "[legacy]\nolder_multi=3\n"],
    ["[DEFAULT]\ns=base\n[grp]\ns=$s\nonly=$only\n"],
    ["[DEFAULT]\ns=base\n[grp]\nonly=$s\n"],
    ["[DEFAULT]\ns=base\n[grp]\ns=local\nonly=$s ${s} $grp.s ${grp.s} $$s \\$s\n"],
    ["[DEFAULT]\ns=$sd\nsd=$s\n"],
    ["[DEFAULT]\ns=$s\n"],
    ["[DEFAULT]\ns=$sd\nsd=$e\ne=$grp.only\n[grp]\nonly=$ref\n"],
    ["[DEFAULT]\ns=$sd\nsd=$i\ni=5\n"],
    ["[DEFAULT]\ns=$nosuch\n"], ["[DEFAULT]\ns=$nosuch.opt\n"], ["[DEFAULT]\ns=$sd.x\n"], ["[DEFAULT]\ns=${sd}.x\n"], ["[DEFAULT]\ns=$DEFAULT.sd\n"],
    ["[DEFAULT]\ns=$SD\n"], ["[DEFAULT]\ns=$Grp.i\n"], ["[DEFAULT]\ns=$grp\n"], ["[DEFAULT]\ns=$grp.i\n"], ["[DEFAULT]\ns=$grp.sd\n"],
    ["[DEFAULT]\ns=a$\n"], ["[DEFAULT]\ns=$\n"], ["[DEFAULT]\ns=$$\n"], ["[DEFAULT]\ns=$$$sd\n"], ["[DEFAULT]\ns=$1\n"], ["[DEFAULT]\ns=${sd\n"], ["[DEFAULT]\ns=${}\n"],
    ["[DEFAULT]\ns=$sd:80/$sd-$sd\n"], ["[DEFAULT]\ns=\\$sd\n"], ["[DEFAULT]\ns=\\\\$sd\n"], ["[DEFAULT]\ns=$b $f $i\nb=yes\nf=1e3\ni=007\n"],
    ["[DEFAULT]\ns=$f\nf=1e-5\n"], ["[DEFAULT]\ns=$f\nf=1e16\n"], ["[DEFAULT]\ns=$f\nf=123456.75\n"], ["[DEFAULT]\ns=$l.x\n"], ["[DEFAULT]\ns=x$ref\n"],
    ["[DEFAULT]\ni=$bounded\nbounded=3\n"], ["[DEFAULT]\ni=$s\ns=4\n"], ["[DEFAULT]\nl=$s,$sd\ns=a,b\n"], ["[DEFAULT]\nm=$sd\nm=${sd}2\n"], ["[DEFAULT]\nd=k:$sd\n"],
    ["[DEFAULT]\ns=$host\nhost=h.example.\n"],
]

ENV = [
    (["[DEFAULT]\ns=file\n"], {"OS_DEFAULT__S": "env"}),
    (["[grp]\ns=file\n"], {"OS_GRP__S": "env", "OS_GRP__ONLY": "$s"}),
    (["[DEFAULT]\nrenamed=file\n"], {"OS_DEFAULT__OLD_NAME": "env"}),
    ([""], {"OS_DEFAULT__I": "12", "OS_DEFAULT__B": "on", "OS_DEFAULT__L": "a,b"}),
    ([""], {"OS_DEFAULT__I": "twelve"}),
    (["[DEFAULT]\ns=file\n"], {"OS_DEFAULT__S": ""}),
    (["[DEFAULT]\ns=file\n"], {"os_default__s": "env", "OS_DEFAULT_S": "env"}),
]

VALUES = {
    "i": ["0", "-1", "+5", " 5 ", "1_000", "1__0", "_1", "1_", "007", "0x10", "1.0", "1e3", "", "abc", "- 1", "5 # c", "'7'"],
    "bounded": ["-1", "-2", "10", "11", "0"],
    "f": ["0", "1.5", ".5", "5.", "1e3", "1_0.5", "-1E-2", "", "abc", "1,5", "0x1p4", "+.5e1", ".", "1e", "e1", "1_.5", "1._5", "--1"],
    "b": ["true", "True", "YES", "on", "1", "false", "No", "OFF", "0", "", "y", "n", "t", "2", "' true '", "enabled"],
    "l": ["", "a", "a,b", "a, b ,c", "a,,b", ",a", "a,", "a,,", ",", "a b", "[a,b]", "'a','b'", "\"a,b\"", "a\n b", "a,\n b"],
    "d": ["", "a:1", "a:1,b:2", "a:1, b : 2 ", "a", "a,b:1", "a:b:c", "a:1,a:2", ":1", "a:", "a:1,", "a:1,,b:2", ",a:1", "a:1,b", "node:0,size:2048,count:64"],
    "port": ["0", "1", "65535", "65536", "-1", "http", ""],
    "ip": ["1.2.3.4", "1.2.3", "01.2.3.4", "1.2.3.256", "::1", "fe80::1", "fe80::1%eth0", "::ffff:1.2.3.4", "[::1]", "", "localhost", "1.2.3.4 "],
    "host": ["a", "a.b", "a_b", "a-b", "-a", "a-", "1.2.3.4", "1.2.3", "1", "a1", "1a", "a.1", "a.", "a..b", "", "::1", "a b", "x" * 63, "x" * 64,
             ".".join(["x" * 60] * 4), ".".join(["x" * 63] * 4), "é.example", "a.-b"],
    "uri": ["http://h", "http://h/", "http://h:80/p?q#f", "h", "http:", "http://", "/p", "ws://127.0.0.1:6083/", "http://[::1]:80/", "unix:/run/x", "http://u:p@h/",
            "http://h/a b", "1http://h/", "http://h:port/"],
    "e": ["one", "two", "", "One", "three", "one "],
}


def random_cases(rng, n):
    lines = [
        "[DEFAULT]", "[grp]", "[GRP]", "[legacy]", "s=x", "s = $sd", "sd=y", "sd = '${grp.only}'", "only=z", "only=$s", "i=3", "i=$bounded", "bounded=4",
        "l=a,b", "l=$s,c", "m=1", "m=$sd", "m='q'", "old_name=o", "renamed=$grp.only", "older_multi=w", "old_multi=v", "b=yes", "f=2.5", "# c", "; c", "",
        "  cont", "\tcont $i", "e=one", "s=$$x", "s=\\$x", "s=a:b=c", "s: d", "i=", "sd=\"", "ref=$ref2", "ip=10.0.0.1", "port=$i",
    ]
    out = []
    while len(out) < n:
        files = ["\n".join(["[DEFAULT]"] + [rng.choice(lines) for _ in range(rng.randint(1, 12))]) + "\n" for _ in range(rng.randint(1, 3))]
        if any("error" in parse(f) for f in files):
            continue
        out.append(load(files))
    return out


def main():
    rng = random.Random(20221005)
    cases = [load(files) for files in RESOLVE] + [load(files, env) for files, env in ENV]
    for name, values in VALUES.items():
        cases += [load(["[DEFAULT]\n%s=%s\n" % (name, v)]) for v in values]
    cases += random_cases(rng, 150)
    # Only what a case sets or refers to tells something; the rest is the same everywhere.
    base = load([""])
    for c in cases:
        c["values"] = {k: v for k, v in c["values"].items() if v != base["values"][k]}
    json.dump({
        "oslo_config": version_info.version_string(),
        "options": [{"group": g, "name": n, "type": t, **extra} for g, n, t, extra in OPTIONS],
        "parse": [parse(t) for t in PARSE],
        "base": base["values"],
        "load": cases,
    }, sys.stdout, indent=0, sort_keys=True)
    print()


main()
