"Links in what is written: names in backticks to their cards and pages, numbers of arXiv to their papers"
import re
from functools import cache
from nbdev.doclinks import NbdevLookup
from symbols import cfg,exported,full,lib,modname

# --- papers

_number = r'(?<![\w./])(?P<n>(?:0[7-9]|[12]\d)(?:0[1-9]|1[0-2])\.\d{4,5})(?!\w)'
_aside = r'^```.*?^```|(?P<q>`+)(?:(?!(?P=q)).)+(?P=q)|\[[^\]]*\]\([^)\n]*\)|<[^>\n]+>|https?:\S+|^#[^\n]*'
_in_text,_in_html = re.compile(f'{_aside}|{_number}', re.M|re.S),re.compile(f'<[^>]*>|{_number}')
def papers(s):
    "Numbers of arXiv as links, outside of code, links, tags and headings"
    return _in_text.sub(lambda m: f"[{m['n']}](https://arxiv.org/abs/{m['n']})" if m['n'] else m[0], s)
def papers_html(s):
    "The same within a table"
    return _in_html.sub(lambda m: f'<a href="https://arxiv.org/abs/{m["n"]}">{m["n"]}</a>' if m['n'] else m[0], s)

# --- names

# Also experiments, columns, verbs: elsewhere than at home they link as `digits()` only
ambiguous = {'arms','digits','presets','prunable','report','rewind','words'}
# What criteria and resets may ask for; one card has them all
asked_for = {'w_i','w_k','w_f','w_n','w_m','wg_m'}
rooms = {p.stem.partition('_')[2] for p in cfg.nbs_path.glob('[0-8][0-9]_*.ipynb')}

def role(label, f): return f'{{py:obj}}`{label} <{f}>`'
class Lookup(NbdevLookup):
    "Links to our own symbols become roles, which Sphinx checks; others stay links. Cards have theirs already"
    page = ''         # the one being staged
    def _link_sym(self, m):
        f = full(m[1])
        if f and m[1] in ambiguous and m[0][-2]!=')' and self.page!=modname(f): return m[0]
        return role(m[1], f) if f else super()._link_sym(m)
    def linkify(self, md): return md if re.match(r':+\{py:', md or '') else super().linkify(md)

_call = re.compile(r'(?P<on>learn\.lottery\.|learn\.)?(?P<name>[A-Za-z_][\w.]*)(?P<given>\(.*\)|\[.*\])?')
def home(word):
    "Full name of what a word in backticks calls: a name, a call, or a verb of a Learner or of its callback"
    if word=='learn.lottery': return full('LotteryCallback')
    if word in asked_for: return full('words')
    if not (m := _call.fullmatch(word)) or (not m['on'] and not m['given'] and word in ambiguous): return
    on = {None:('','Learner.'), 'learn.':('Learner.',), 'learn.lottery.':('LotteryCallback.',)}[m['on']]
    return next((f for o in on if (f := full(o+m['name'])) in exported), None)

_code = re.compile(r'(see )?(?<!`)`([^`\n]+)`(?!`)')
_of_fastai = cache(Lookup)
def linked(s, own=()):
    "The text of a card with its links: a room's name is one behind the word see, and what is `own` stays plain"
    def link(m):
        see,word = m[1] or '',m[2]
        f = None if word in own else home(word)
        if f: return see+role(word, f)
        if see and word in rooms: return f"{see}[`{word}`]({'../'*Lookup.page.count('/')}{word}.ipynb)"
        return m[0] if word in own or word in ambiguous or full(word) else see+_of_fastai().link_line(m[0][len(see):])
    return papers(_code.sub(link, s))
