#!/usr/bin/env python3
"""Makes tests/data/template-semantics.json: what Python's Jinja, set up as Hugging Face transformers does, renders.

Small templates, one for each thing on which an engine that is not Python's may differ, and whole templates in the
shapes that chat models use. All are written for this test. `null` stands where jinja2 raises an error.

    pip install transformers==5.23.0 jinja2==3.1.6
    tools/make-template-goldens.py
"""
import datetime, json, os
import transformers.utils.chat_template_utils as utils

NOW = datetime.datetime(2026, 2, 3, 4, 5, 6)


class Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


utils.datetime = Frozen
CONTEXT = {
    "messages": [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": " What's 1 < 2 & \"é\"? "},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTwo."},
        {"role": "user", "content": "Thanks"},
    ],
    "add_generation_prompt": True, "tools": None, "documents": None,
    "bos_token": "<s>", "eos_token": "</s>",
    "f": 1.5, "n": 7, "neg": -7, "t": True, "none_": None, "word": "Hello wOrld", "digits": "42",
    "xs": [3, 1, 2], "names": ["b", "A", "c"], "d": {"b": 1, "a": [1, None, True], "é": {"x": 1.0}}, "empty": [],
    "people": [{"name": "Al", "age": 30, "city": "X"}, {"name": "bo", "age": 25, "city": "Y"}, {"name": "Cy", "age": 30, "city": "X"}],
}
EXPRESSIONS = r"""
true
false
none
True ~ False ~ None
[true, none, 1.0, 'a', "it's", 'q"q', "b'\"b"]
{'a': 1, 'b': [none], 2: 'x', true: false}
(1, 'a')
(1,)
()
[]
{}
'line\n\ttab\\'
['line\n\ttab\\ é \u200b']
1.0
1.5e300
1e16
1e15
123456789012345678.0
1e-4
1e-5
0.1 + 0.2
1e20
1 / 3
7 / 2
8 / 2
7 // 2
-7 // 2
7 // -2
7.5 // 2
-7 % 3
7 % -3
-7.5 % 2
7 % 0
7 / 0
2 ** 10
2 ** -1
2 ** 0.5
-2 ** 2
10 ** 20
2 ** 64 + 1
9223372036854775807 + 1
-n
+n
n + f
t + 1
t + t
'a' + 'b'
'a' + 1
1 + 'a'
'ab' * 3
3 * 'ab'
'ab' * -1
[1] * 3
2 * [1, 2]
[1] + [2]
[1] + (2,)
(1,) + (2, 3)
'a' ~ 1 ~ 1.0 ~ none ~ true ~ [1, 'x']
n ~ f
"%s-%d" % ("a", 3)
"%s" % 'x'
"%s" % [1]
"%5d|%-5d|%05d|%+d" % (1, 2, 3, 4)
"%.2f %e %g %x %X %o %c %r %%" % (1.005, 12345.678, 1e-7, 255, 255, 8, 'z', 'q')
"%(a)s %(b)05.1f" % {'a': 1, 'b': 2.25}
"%5s|%-5s|%.2s" % ('a', 'b', 'xyz')
"%d" % 3.7
"%s %s" % 'x'
"%s" % (1, 2)
1 == 1.0
1 == true
'1' == 1
none == false
[1, 2] == [1, 2]
[1] == (1,)
{'a': 1} == {'a': 1.0}
{'a': 1, 'b': 2} == {'b': 2, 'a': 1}
'a' < 'b'
'B' < 'a'
'a' < 1
[1, 2] < [1, 3]
(1, 2) < (1, 2, 0)
1 < 2 < 3
1 < 3 < 2
3 > 2 >= 2 != 1
none is none
none < 1
1 in [1, 2]
'a' in 'abc'
'x' not in 'abc'
'' in 'abc'
1 in 'abc'
'a' in {'a': 1}
1 in (1, 2)
1.0 in [1]
true in [1]
'a' in none
x
x.y
x is defined
x is undefined
x or 'default'
not x
x == none
x ~ 'a'
[x]
x + 'a'
x|length
x|list
x|upper
x|default('d')
''|default('d')
''|default('d', true)
none|default('d')
none|default('d', true)
none|d('x', boolean=true)
messages[0].role
messages[0]['role']
messages[0].missing
messages[0]['missing']
messages[10]
messages[-1].content
messages[-10]
messages.0.role
messages[0].get('role')
messages[0].get('x')
messages[0].get('x', 'y')
messages[0].items()|list
messages[0].keys()|list
messages[0].values()|list
messages[0].items()
d.keys()
d.a
d['a'][0]
d.é.x
d.items
d.copy()
d.pop('a')
d.update({'x': 1})
messages[1:]|length
messages[::-1]|map(attribute='role')|join(',')
messages[:-1]|length
messages[-2:]|map(attribute='role')|list
messages[1:3][0].role
messages[5:]
messages[::2]|length
[1,2,3,4,5][1:4:2]
[1,2,3,4,5][::-2]
[1,2,3,4,5][4:1:-1]
[1,2,3,4,5][-2:-4:-1]
[1,2,3][::0]
(1,2,3)[1:]
'hello'[1]
'hello'[-1]
'hello'[9]
'hello'[1:3]
'hello'[::-1]
'hello'[:-2]
'hello'[-3:]
'héllo'[1:2]
none[1:]
x[1:]
word.upper()
word.lower()
word.title()
"they're bill's 3rd".title()
word.capitalize()
word.swapcase()
word.startswith('He')
word.startswith(('x', 'H'))
word.startswith('e', 1)
word.endswith('ld')
word.endswith(('x', 'd'))
word.find('o')
word.find('z')
word.rfind('o')
word.index('w')
word.index('z')
word.rindex('l')
word.count('l')
word.count('l', 4)
'aaa'.count('aa')
''.count('')
word.replace('l', 'L')
word.replace('l', 'L', 1)
'aaa'.replace('', '-')
'  a b  '.strip()
'  a b  '.lstrip()
'  a b  '.rstrip()
'xxaxx'.strip('x')
'xyaxy'.strip('yx')
'xyaxy'.lstrip('yx')
'xyaxy'.rstrip('yx')
'a,b,,c'.split(',')
'a,b,,c'.split(',', 1)
' a  b '.split()
' a  b  c'.split(none, 1)
'a'.split('')
'a.b.c'.rsplit('.', 1)
' a b  c '.rsplit(none, 1)
'a b c'.rsplit()
'a\nb\r\nc\n'.splitlines()
'a\nb\n'.splitlines(true)
'a=b=c'.partition('=')
'a=b=c'.rpartition('=')
'abc'.partition('=')
'abc'.rpartition('=')
'-'.join(['a', 'b'])
'-'.join([1])
'-'.join('abc')
'<a>x'.removeprefix('<a>')
'x</a>'.removesuffix('</a>')
'x'.removeprefix('y')
'7'.zfill(3)
'-7'.zfill(4)
'a'.center(5, '*')
'ab'.center(5)
'a'.ljust(3) ~ '|'
'a'.rjust(3, '.')
'a\tb'.expandtabs(4)
'12'.isdigit()
''.isdigit()
'1.2'.isdigit()
'ab'.isalpha()
'a1'.isalnum()
' \t'.isspace()
'Ab'.isupper()
'AB1'.isupper()
'ab1'.islower()
'Ab Cd'.istitle()
'12'.isnumeric()
'12'.isdecimal()
'ab_1'.isidentifier()
'ß'.casefold()
'é'.encode('utf-8')
'{} {}'.format(1, 'a')
'{1} {0}'.format(1, 'a')
'{x} {y:>5}|{z:<4}|{w:^5}|'.format(x=1, y='r', z='l', w='c')
'{:05d} {:+.2f} {:,} {:x} {:%} {:e}'.format(42, 3.14159, 1234567, 255, 0.25, 1500)
'{!r} {!s}'.format('a', 'b')
'{0[a]} {0[b]}'.format({'a': 1, 'b': 2})
'{{}}'.format()
'{}'.format()
'{:d}'.format('x')
'{:*^9}'.format('mid')
'a'.nothing()
word.nothing
['a', 'b'].index('b')
['a', 'b'].index('z')
[1, 2, 1].count(1)
[1].append(2)
[3, 1].sort()
[1].pop()
xs.copy()
(1, 2).count(1)
(1, 2).index(2)
n.bit_length()
f.is_integer()
(2.0).is_integer()
word|upper
word|lower
word|capitalize
word|title
"they're o'neil-smith (abc)"|title
word|replace('o', '0')
word|replace('o', '0', 1)
word|trim
'  x '|trim
'xxaxx'|trim('x')
word|length
word|count
messages|length
d|length
5|length
none|length
xs|first
xs|last
empty|first
empty|last
'abc'|first
'abc'|last
xs|sort
xs|sort(reverse=true)
names|sort
names|sort(case_sensitive=true)
people|sort(attribute='name')|map(attribute='name')|join(',')
people|sort(attribute='age,name')|map(attribute='name')|join(',')
people|sort(attribute='age', reverse=true)|map(attribute='name')|join(',')
[1, 'a']|sort
xs|reverse|list
'abc'|reverse
xs|join
xs|join('-')
xs|join(', ')
people|join('/', attribute='name')
[1, none, true, 1.0]|join('|')
'abc'|join(',')
xs|sum
xs|sum(start=10)
people|sum(attribute='age')
[0.1, 0.2]|sum
xs|min
xs|max
names|min
names|max
people|max(attribute='age')
empty|min
xs|map('string')|list
names|map('upper')|list
names|map('replace', 'b', 'x')|list
people|map(attribute='name')|list
people|map(attribute='zip', default='?')|list
people|map(attribute='name.0')|list
people|selectattr('age', 'equalto', 30)|map(attribute='name')|list
people|selectattr('age', 'gt', 26)|list|length
people|selectattr('zip')|list
people|selectattr('zip', 'undefined')|list|length
people|rejectattr('age', 'eq', 30)|map(attribute='name')|list
people|selectattr('city', 'in', ['X'])|list|length
xs|select('odd')|list
xs|reject('odd')|list
xs|select('greaterthan', 1)|list
[0, 1, '', 'a', none]|select|list
[0, 1, '', 'a', none]|reject|list
xs|select('divisibleby', 3)|list
people|groupby('city')|length
people|groupby('city')|map('first')|list
people|groupby('city')|map(attribute='grouper')|list
people|groupby('age')
['b', 'a', 'B']|unique|list
['b', 'a', 'B']|unique(case_sensitive=true)|list
people|unique(attribute='city')|map(attribute='name')|list
[1,2,3,4,5]|batch(2)|list
[1,2,3]|batch(2, 'x')|list
[1,2,3,4,5]|slice(2)|list
[1,2,3,4,5]|slice(2, 'x')|list
'abc'|list
d|list
5|list
(1, 2)|list
d|items|list
d|dictsort
d|dictsort(reverse=true)
{'b': 1, 'A': 2}|dictsort(case_sensitive=true)
{'b': 1, 'a': 2}|dictsort(by='value')
'3'|int
'3.7'|int
3.9|int
-3.9|int
'x'|int
'x'|int(5)
'0x1f'|int(base=16)
'101'|int(base=2)
none|int
true|int
'3.5'|float
'x'|float
'x'|float(1.5)
3|float
'1e3'|float
3.14159|round
3.5|round
2.5|round
-2.5|round
3.14159|round(2)
1234.5|round(-2)
3.1|round(0, 'ceil')
3.9|round(method='floor')
3|round
-3|abs
-3.5|abs
3|string ~ 'x'
3.0|string
none|string
true|string
[1, 'a']|string
'<a href="x">'|escape
'<b>'|e
'<b>'|safe
'<b>x</b>  <!-- c --> y &amp; z'|striptags
'a<b'|forceescape
'a b&c/d=é'|urlencode
{'a': 1, 'b': 'x y'}|urlencode
'abc def'|wordcount
'one two three'|truncate(9)
'one two three'|truncate(9, true)
'one two three'|truncate(7, false, '…')
'one two three'|truncate(11)
'one two three four'|wordwrap(9)
'a\nb'|indent
'a\n\nb'|indent(2)
'a\n\nb'|indent(2, true)
'a\n\nb'|indent(2, blank=true)
'a\nb'|indent('--')
'a'|center(5) ~ '|'
'%s and %s'|format('a', 'b')
'%(x)s'|format(x=1)
'%05.1f'|format(3.14159)
1000|filesizeformat
1500000|filesizeformat
1048576|filesizeformat(true)
people|first|attr('name')
word|attr('upper')
'a'|nofilter
xs|random
d|pprint
d|tojson
d|tojson(indent=2)
d|tojson(indent=0)
d|tojson(sort_keys=true)
d|tojson(ensure_ascii=true)
d|tojson(separators=(',', ':'))
d|tojson(separators=[',', ': '], indent=1)
d|tojson(indent=2, separators=(',', ':'))
d|tojson(true)
d|tojson(false, 4)
d|tojson(indent='--')
[]|tojson(indent=2)
{}|tojson(indent=2)
[[], {}, [1]]|tojson(indent=2)
'<&>\'"é\n\u2028\x7f\x01'|tojson
'😀é'|tojson(ensure_ascii=true)
1.0|tojson
1e20|tojson
1e16|tojson
1e-7|tojson
2 ** 70|tojson
none|tojson
true|tojson
(1, 2)|tojson
{1: 'a', none: 'b', true: 'c', 1.5: 'd'}|tojson
x|tojson
{'b': 1, 'a': 2}|tojson(sort_keys=true)
messages[0]|tojson
range(3)|list|tojson
n is number
f is float
n is integer
t is integer
t is boolean
t is number
n is float
word is string
messages is sequence
messages is iterable
messages is mapping
d is mapping
d is sequence
word is sequence
word is iterable
5 is iterable
none is none
n is odd
n is even
n is divisibleby 7
n is divisibleby(3)
n is eq 7
n is equalto 7
n is ne 7
n is gt 6
n is lt 6
n is ge 7
n is le 6
n is in [7]
n is not in [7]
n is sameas n
none is sameas none
true is true
1 is true
false is false
'abc' is lower
'ABC' is upper
'a' is escaped
'upper' is filter
'nofilter' is filter
'odd' is test
raise_exception is callable
word is callable
range is callable
x is not defined
messages[0].content is defined
messages[0].foo is defined
messages[0].content is string
n is not none
n is nothing
range(5)|list
range(1, 5)|list
range(5, 0, -2)|list
range(3)
range(0)|list
dict(a=1, b=2)
dict([('a', 1)])
dict({'a': 1}, b=2)
dict.fromkeys(['a', 'b'], 0)
lipsum
namespace(a=1).a
joiner(', ') is callable
cycler('a', 'b').next()
strftime_now('%Y-%m-%d')
strftime_now('%d %b %Y %H:%M:%S')
strftime_now('%A %B %a %b')
strftime_now('%-d %-m %-H %-I %-M')
strftime_now('%j %U %W %w %u %V %G')
strftime_now('%I %p %y %C %e')
strftime_now('%c')
strftime_now('%x %X')
strftime_now('%D %F %T %R %r')
strftime_now('%f|%z|%Z|%%')
strftime_now('%n%t|%h|%k|%l|%P')
strftime_now('%s')|length
strftime_now('%Q')
strftime_now('100%')
strftime_now('')
strftime_now('é %Y')
'a' if t else 'b'
'a' if false
('a' if false) is defined
'a' if not t else ('b' if n > 5 else 'c')
t and 'x'
false or none or 'z'
0 and 1
'' or []
not none
not 1 == 2
not (1 == 2)
t and not false
1 + 2 * 3 - 4 / 2
(1 + 2) * 3
2 * 3 % 4
'a' ~ 1 + 2
'a' 'b'
1_000
0x1f
0b101
0o17
.5
1.
"\u00e9\x41\101"
'a\
b'
"tab\tq\"q"
'{{ x }}'
n | string | length
-n | abs
(-n) | abs
n.__class__
word.__len__()
messages.__class__
''.__class__.__mro__
messages[0].content.split('<')[0].strip()
messages[2].content.split('</think>')[-1].lstrip('\n')
messages[2].content.split('</think>')[0].split('<think>')[-1].strip('\n')
(messages|length - 1) - 0
messages|map(attribute='content')|map('trim')|map('length')|list
(messages|selectattr('role', 'equalto', 'user')|list)[-1].content
messages|selectattr('role', 'ne', 'system')|map(attribute='role')|join(' ')
[1, [2, [3]]]|tojson
{'a': {'b': {'c': none}}}|tojson
'a' if messages[0]['role'] == 'system' and messages|length > 1
raise_exception('no')
caller()
loop
self
1 if 2 if 3 else 4 else 5
[1,2,3,]
{'a': 1,}
(1, 2,)
[i for i in xs]
lambda
xs|map('int')|sum
xs|map(attribute=0)|list
'x'|map('upper')|list
[[1, 2], [3]]|sum(start=[])
xs is sequence and xs is not mapping and xs is not string
'tool_calls' in messages[0]
messages[0].tool_calls is defined and messages[0].tool_calls
'%s'|format(none)
'a'.join(['x', 'y'])|upper
{'a': 1}.a
{'a': 1}['a']
[1, 2].0
'abc'.upper().lower()
digits|int + 1
digits * 2
[none, 1]|first
(1, 2, 3)|last
xs|list == xs
'é'|length
'日本'|upper
'ﬁ'|upper
'İ'|lower|length
'\n'|trim|length
'\u00a0x\u2003'|trim
'\x1cx'|trim|length
{'a b': 1}|xmlattr
'http://a.b c'|urlize
"a" is eq("a")
word[0]|lower ~ word[1:]
1 is number and '1' is not number
2 is sameas 2.0
{} is mapping
none ~ ''
'x'.format
1 <= 2
1 <> 2
[1, 2, 3]|tojson|length
-1|abs
(-1)|abs
2 - -1
'a' not in ['b']
not 'a' in ['b']
n if n is odd else 0
'abc'|slice(2)|list
xs|list|reverse|join
xs|last + xs|first
'a,b'.split(',')|last
'abc'.isascii()
'tést'.isascii()
'a b'.split(' ')|map('capitalize')|join(' ')
""|length == 0
[] or 'none'
{} or 'none'
0.0 or 'zero'
[0]|first or 'zero'
""".strip("\n").replace("\\\nb'", "\\\x00b'").split("\n")
STATEMENTS = [
    "{% for i in xs %}{{ i }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for i in xs %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.revindex0 }}/{{ loop.first }}/{{ loop.last }}/{{ loop.length }};{% endfor %}",
    "{% for i in xs %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }} {% endfor %}",
    "{% for i in xs %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for i in [1, 1, 2] %}{{ loop.changed(i) }} {% endfor %}",
    "{% for i in xs %}{{ loop.depth }}{{ loop.depth0 }}{% for j in xs %}{{ loop.depth }}{% endfor %}{% endfor %}",
    "{% for i in empty %}x{% else %}none{% endfor %}",
    "{% for i in x %}x{% else %}none{% endfor %}",
    "{% for i in none_ %}x{% endfor %}",
    "{% for i in 5 %}x{% endfor %}",
    "{% for i in 'abc' %}{{ i }}.{% endfor %}",
    "{% for k in d %}{{ k }} {% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in d|items %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in d|dictsort %}{{ k }};{% endfor %}",
    "{% for a, b in [(1, 2), [3, 4]] %}{{ a + b }} {% endfor %}",
    "{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}",
    "{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content|trim }};{% endfor %}",
    "{% for m in messages if loop.first %}{{ m }}{% endfor %}",
    "{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in xs %}{% for j in xs %}{% if j == 1 %}{% break %}{% endif %}{{ i }}{{ j }} {% endfor %}{% endfor %}",
    "{% for i in [1, [2, [3]]] recursive %}{% if i is iterable %}[{{ loop(i) }}]{% else %}{{ i }}{% endif %}{% endfor %}",
    "{% set x = 1 %}{% for i in xs %}{% set x = i %}{% endfor %}{{ x }}",
    "{% set ns = namespace(x=1) %}{% for i in xs %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=1, y=[]) %}{% set ns.y = ns.y + [ns.x] %}{{ ns.y }}{{ ns.z }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}",
    "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{% set d2 = {} %}{% set d2.x = 1 %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set a = b = 1 %}",
    "{% set x %}a{{ n }}b{% endset %}[{{ x }}]",
    "{% set x | upper %}abc{% endset %}{{ x }}",
    "{% set x = 1 if false %}{{ x is defined }}",
    "{% if x %}a{% elif n == 7 %}b{% else %}c{% endif %}",
    "{% if messages and messages[0].role == 'system' %}S{% endif %}",
    "{% if not x %}u{% endif %}{% if x is defined %}d{% endif %}",
    "{% if true %}{% set y = 5 %}{% endif %}{{ y }}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a }}",
    "{% with %}{% set q = 1 %}{% endwith %}{{ q }}",
    "{% macro f(a, b=2) %}{{ a }}-{{ b }}{% endmacro %}{{ f(1) }} {{ f(1, 3) }} {{ f(b=5, a=4) }} {{ f() }}",
    "{% macro f(a) %}{{ a }}{{ varargs|length }}{% endmacro %}{{ f(1, 2, 3) }}",
    "{% macro f(a) %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, x=3) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, c=2) }}",
    "{% macro f(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}",
    "{% macro f() %}{{ n }}{% endmacro %}{{ f() }}",
    "{% macro f() %}{{ q }}{% endmacro %}{% set q = 3 %}{{ f() }}",
    "{% set q = 3 %}{% macro f() %}{{ q }}{% endmacro %}{{ f() }}",
    "{% for i in xs %}{% macro f() %}{{ i }}{% endmacro %}{{ f() }}{% endfor %}",
    "{% macro f(i) %}{% if i > 0 %}{{ i }}{{ f(i - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{% macro f() %}  x {% endmacro %}[{{ f()|trim }}]",
    "{% macro f() %}[{{ caller() }}]{% endmacro %}{% call f() %}in{% endcall %}",
    "{% macro f() %}[{{ caller(1) }}]{% endmacro %}{% call(x) f() %}in{{ x }}{% endcall %}",
    "{% macro f(a) %}{% endmacro %}{{ f.name }} {{ f.arguments }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1) ~ f(2) }} {{ f(1)|length }} {{ f is callable }}",
    "{% macro f(x) %}{% if x is mapping %}{{ x|tojson }}{% else %}{{ x }}{% endif %}{% endmacro %}{{ f(d) }}{{ f(1) }}",
    "{% filter upper %}abc{{ n }}{% endfilter %}",
    "{% filter replace('a', 'b')|upper %}aaa{% endfilter %}",
    "{% raw %}{{ x }}{% x %}{% endraw %}",
    "{%- raw -%} {{ x }} {%- endraw -%}",
    "a{# comment #}b{#- c -#} d",
    "{# multi\nline #}\nx",
    "  {% if true %}\n  a\n  {% endif %}\n  b\n",
    "  {%- if true %}\n  a\n  {%- endif %}\n  b",
    "  {% if true -%}\n  a\n  {% endif -%}\n  b",
    "x {{- ' a ' -}} y",
    "x\n{{ 'a' }}\ny\n",
    "x\n  {{ 'a' }}  \ny\n\n",
    "  {%+ if true %}a{% endif %}",
    "{% if true +%}\na{% endif %}",
    "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\r",
    "\n\n{% for i in xs %}\n\n{{ i }}\n\n{% endfor %}\n\n",
    "{% for i in xs -%}\n {{ i }}\n{%- endfor %}",
    "{%if true%}a{%endif%}{{1}}{{-1}}{{ -1 }}",
    "{% generation %}a{% endgeneration %}",
    "{%- generation -%} a {%- endgeneration -%} b",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}",
    "{% generation %}{% set q = 1 %}{% endgeneration %}{{ q }}",
    "{% block a %}x{% endblock %}",
    "{% block a %}{{ n }}{% endblock a %}{{ self.a() }}",
    "{% include 'x' %}",
    "{% include 'x' ignore missing %}",
    "{% extends 'x' %}",
    "{% import 'x' as y %}",
    "{% do xs %}",
    "{% trans %}x{% endtrans %}",
    "{% autoescape true %}{{ '<' }}{% endautoescape %}",
    "{% autoescape false %}{{ '<' }}{% endautoescape %}",
    "{{ '<' }}&",
    "{% if %}",
    "{{ }}",
    "{{ 1",
    "{% endif %}",
    "{% for i in xs %}",
    "{{ 1 }} }} %} #}",
    "{ { x } } {x}",
    "{{ {'a': {'b': 1}} }}",
    "{{'}}'}}",
    "{% set x = '%}' %}{{ x }}",
    "{% set f = 3 %}{{ f }}{% set messages = messages[1:] %}{{ messages|length }}",
    "{% set loop_messages = messages %}{% for m in loop_messages %}{{ loop.index0 }}{% endfor %}",
    "{% set content = messages[0].content if messages[0].content is string else '' %}{{ content }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}",
    "{% set j = joiner('|') %}{% for i in xs %}{{ j() }}{{ i }}{% endfor %}",
    "{% set xs2 = [] %}{% for i in xs %}{% set xs2 = xs2 + [i] %}{% endfor %}{{ xs2 }}",
    "{% set _ = xs.append(4) %}{{ xs }}",
    "{{ xs.append(4) }}",
    "{% for g in people|groupby('city') %}{{ g.grouper }}:{{ g.list|length }} {% endfor %}",
    "{% for c, l in people|groupby('city') %}{{ c }}:{{ l|map(attribute='name')|join(',') }} {% endfor %}",
    "{% for row in [1,2,3,4,5]|batch(2, '-') %}{{ row|join }};{% endfor %}",
    "{% for m in messages|reverse %}{{ m.role[0] }}{% endfor %}",
    "{% for i in range(messages|length - 1, -1, -1) %}{{ i }}{{ messages[i].role[0] }}{% endfor %}",
    "{% for p in people|sort(attribute='age') %}{{ p.name }}{% endfor %}",
    "{%- for k, v in {'b': 1, 'a': 2}.items() -%}{{ k }}{{ v }}{%- endfor -%}",
    "{{ messages[0] }}",
    "{{ messages|tojson(indent=4) }}",
    "{% for i in range(3) %}{{ loop }}{% break %}{% endfor %}",
    "{% macro a() %}{% endmacro %}{{ a }}",
    "{{ namespace() }}",
    "{{ raise_exception }}",
    "{% if n is divisibleby 7 and n is odd %}y{% endif %}",
    "{% for x in [1,2,3] if x is odd %}{{ x }}{% else %}-{% endfor %}",
    "{% for x in range(3) %}{{ x }}{% endfor %}{{ x }}",
    "{% for i in xs %}{% set loop_i = i %}{{ loop_i }}{% endfor %}{{ loop_i }}",
    "{% if true %}{{ 'a' }}\n{% endif %}\n\nb",
    "{%- set a = 'x' %}\n{{ a }}",
    "{{ messages[1]['content'] | trim }}|{{ messages[1].content.strip() }}",
    "{{ ('a', 'b') | join }} {{ (1, 'b') }}",
    "{{ 'a' if x is defined and x else 'b' }}",
    "{{ (messages | last).content }}{{ (messages | first)['role'] }}",
    "{{ messages | map(attribute='role') | list }}",
    "{{ messages | selectattr('role', 'in', ['user', 'tool']) | list | length }}",
    "{{ [1, 2] | map('multiply', 2) | list }}",
    "{% set a = [1, 2, 3] %}{{ a[0], a[1] }}",
    "{{ 1, 2 }}",
    "{% set x = 1, %}{{ x }}",
    "{% for x in 1, 2, 3 %}{{ x }}{% endfor %}",
    "{% set x = dict(role='user') %}{{ x.role }}{{ dict(x, content='c') }}",
    "{{ {'role': 'user', **{}} }}",
    "{{ dict(**{'a': 1}) }}",
    "{% macro f() %}{{ kwargs.a }}{{ varargs[0] }}{% endmacro %}{{ f(*[1], **{'a': 2}) }}",
]
SHAPES = [
    # A header for each message, tools as JSON in the system message.
    """{{- bos_token }}
{%- if tools is not defined or tools is none %}{% set tools = [] %}{% endif %}
{%- set ns = namespace(system='', date=strftime_now('%d %b %Y')) %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|head|>system<|/head|>\\n\\n' }}
{%- if tools %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- '\\n\\n' }}
    {%- endfor %}
{%- endif %}
{{- 'Today: ' + ns.date + '\\n\\n' + ns.system + '<|eot|>' }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|head|>' + message['role'] + '<|/head|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}{{- raise_exception('one call at a time') }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|head|>assistant<|/head|>\\n\\n' }}{%- endif %}""",
    # Reasoning is cut out of all but the last answers.
    """{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not(message.content.startswith('<result>') and message.content.endswith('</result>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    # Roles alternate, the system message goes into the last user's.
    """{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.tool_calls is defined and message.tool_calls is not none) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}{{- raise_exception("roles must alternate") }}{%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}{{- "[TOOLS]" + tools|tojson + "[/TOOLS]" }}{%- endif %}
        {%- if loop.last and system_message is defined %}{{- "[INST]" + system_message + "\\n\\n" + message["content"] + "[/INST]" }}{%- else %}{{- "[INST]" + message["content"] + "[/INST]" }}{%- endif %}
    {%- elif message["role"] == "assistant" %}{{- message["content"]|trim + eos_token }}
    {%- endif %}
{%- endfor %}""",
    # Types of a schema, by a macro that calls itself.
    """{%- macro render_type(spec) -%}
    {%- if spec.type == 'array' -%}{{ render_type(spec['items']) }}[]
    {%- elif spec.type == 'object' and spec.properties -%}{
        {%- for name, prop in spec.properties.items() -%}
            {{ name }}{% if name not in (spec.required or []) %}?{% endif %}: {{ render_type(prop) }}{% if not loop.last %}, {% endif %}
        {%- endfor -%}}
    {%- elif spec.enum -%}{{ spec.enum | map('tojson') | join(' | ') }}
    {%- else -%}{{ spec.type | default('any') }}
    {%- endif -%}
{%- endmacro -%}
{%- set schema = {'type': 'object', 'required': ['a'], 'properties': {'a': {'type': 'array', 'items': {'type': 'number'}}, 'b': {'type': 'string', 'enum': ['x', 'y']}, 'c': {}}} -%}
type = {{ render_type(schema) }}""",
    # Content as a list of parts.
    """{% for message in [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'hi '}]}] + messages %}{% if loop.first %}{{ bos_token }}{% endif %}
<turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}
{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}{% for item in message['content'] %}{% if item['type'] == 'image' %}<image>{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}{% endif %}<end>
{% endfor %}{% if add_generation_prompt %}<turn>model
{% endif %}""",
    # The oldest form.
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'].strip() + '\n\n' }}{% elif message['role'] == 'assistant' %}{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{% elif message['role'] == 'system' %}{{ message['content'].strip() + '\n\n' }}{% endif %}{% if loop.last and message['role'] != 'assistant' %}{{ '### Response:\n' }}{% endif %}{% endfor %}",
]
cases = []
seen = set()
for source in ["{{ " + e.replace("\x00", "\n") + " }}" for e in EXPRESSIONS] + STATEMENTS + SHAPES:
    if source in seen:
        continue
    seen.add(source)
    try:
        expected = utils._compile_jinja_template(source).render(**json.loads(json.dumps(CONTEXT)))
    except Exception as e:
        expected = None
    if expected is not None and (" object at 0x" in expected or "<function" in expected or "<bound" in expected or "<built-in" in expected):
        continue
    if "random" in source:
        continue
    cases.append([source, expected])
out = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "data", "template-semantics.json")
with open(out, "w") as f:
    dump = lambda value: json.dumps(value, ensure_ascii=False)
    f.write('{"context": ' + dump(CONTEXT) + ',\n"cases": [\n' + ",\n".join(map(dump, cases)) + "\n]}\n")
print(len(cases), "templates,", sum(e is None for _, e in cases), "errors")
