"The built site, checked: every link leads somewhere, and looking at a page asks nothing of other hosts"
import re
from html.parser import HTMLParser
from urllib.parse import unquote,urldefrag

sources = 'script','img','iframe','source','video','audio','embed'
class Page(HTMLParser):
    "What a page points to, what can be pointed at, and what a viewer would fetch"
    def __init__(self, p):
        super().__init__()
        self.ids,self.links,self.loads,self.bad = set(),[],[],[]
        self.feed(p.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids.update(v for k in ('id','name') if (v := a.get(k)))
        fetched = not {'canonical','alternate'} & set(a.get('rel','').split())
        if tag=='a' and a.get('href'): self.links.append(a['href'])
        elif tag=='link' and fetched: self.loads.append(a.get('href',''))
        elif tag in sources and a.get('src'): self.loads.append(a['src'])
        elif tag=='object' and a.get('data'): self.loads.append(a['data'])
        if tag=='img' and not (a.get('alt') or '').strip(): self.bad.append(f"image without alt text: {a.get('src')}")

def is_address(url): return bool(re.match(r'\w+:|//', url))
def lost(url, p, pages):
    "What is wrong with a link on page `p`"
    path,frag = urldefrag(url.split('?')[0] if '#' not in url else re.sub(r'\?[^#]*','',url))
    t = (p.parent/unquote(path)).resolve() if path else p
    if t.is_dir(): t = t/'index.html'
    if not t.exists(): return f'broken link: {url}'
    if frag and t in pages and unquote(frag) not in pages[t].ids: return f'broken anchor: {url}'

def faults(p, page, pages):
    "What is wrong with a page"
    yield from page.bad
    for url in page.links+page.loads:
        if not is_address(url): yield lost(url, p, pages)
        elif url in page.loads and not url.startswith('data:'): yield f'fetched from another host: {url}'

elsewhere = re.compile(r'(?:@import\s+|url\()["\']?((?:https?:)?//[^"\')]+)')
def check(out):
    "How many pages there are, and what is wrong with them: links, anchors, images without alt text, other hosts"
    pages,bad = {p:Page(p) for p in out.rglob('*.html')},[]
    for p,page in pages.items():
        bad += [f'{p.relative_to(out)}: {e}' for e in dict.fromkeys(faults(p, page, pages)) if e]
    for p in out.rglob('*.css'):
        urls = elsewhere.findall(p.read_text(encoding='utf-8'))
        bad += [f'{p.relative_to(out)}: fetched from another host: {u}' for u in urls]
    return len(pages),bad
