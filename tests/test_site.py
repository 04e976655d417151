"The built site in a real browser: every page, its search, its dark switch, at the width of a phone"
import functools,http.server,os,re,shutil,subprocess,sys,threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote,urldefrag,urlsplit
import pytest

root = Path(__file__).resolve().parent.parent
chrome = next((p for o in ('chromium','chromium-browser','google-chrome') if (p := shutil.which(o))), None)
try: from playwright.sync_api import sync_playwright
except ImportError: sync_playwright = None
pytestmark = [pytest.mark.slow,
    pytest.mark.skipif(not chrome, reason='needs Chromium; none is found (Debian: apt-get install chromium)'),
    pytest.mark.skipif(not sync_playwright, reason="needs playwright, of the `dev` extra")]
phone,desk = dict(width=390, height=844),dict(width=1280, height=900)
limit = 1_500_000                               # bytes of a page and its images

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "Folder of the built site: `OUT`, that of `make docs`, or one built now"
    out = Path(os.environ.get('OUT', root/'docs/_build/html')).resolve()
    if (out/'index.html').exists(): return out
    if sys.version_info<(3,11): pytest.skip('there is no site: Sphinx 9, which builds it, needs Python 3.11 or newer')
    pytest.importorskip('myst_nb', reason='there is no site: what builds it is in the `docs` extra')
    out = tmp_path_factory.mktemp('site')/'html'
    r = subprocess.run([sys.executable,root/'docs/build.py'], cwd=root, env={**os.environ,'OUT':str(out)}, text=True, capture_output=True)
    assert r.returncode==0, r.stdout+r.stderr
    return out

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='module')
def web(site):
    "The site on localhost, and one page of one browser that writes down what goes wrong and asks nothing of other hosts"
    srv = http.server.ThreadingHTTPServer(('127.0.0.1',0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=srv.serve_forever, daemon=True).start()
    url,bad = f'http://127.0.0.1:{srv.server_port}/',[]
    def note(kind, o): bad.append(f'{kind}: {o}'.replace(url,''))
    try:
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=chrome, args=['--no-sandbox'])
            page = browser.new_page(viewport=phone, color_scheme='light')
            page.set_default_timeout(30_000)
            page.route(re.compile(f'^(?!{re.escape(url)}|data:|blob:)'), lambda r: r.abort())
            page.on('request', lambda r: None if r.url.startswith((url,'data:','blob:')) else note('request to another host', r.url))
            page.on('requestfailed', lambda r: note('failed', f'{r.url} ({r.failure})'))
            page.on('response', lambda r: note(f'answer {r.status}', r.url) if r.status>=400 else None)
            page.on('console', lambda m: note('console', m.text) if m.type=='error' else None)
            page.on('pageerror', lambda e: note('script', e))
            yield SimpleNamespace(url=url, page=page, bad=bad)
            browser.close()
    finally:
        srv.shutdown()
        srv.server_close()

look = '''() => ({ids: [...document.querySelectorAll('[id],a[name]')].flatMap(o => [o.id, o.name]).filter(o => typeof o=='string' && o),
    links: [...document.querySelectorAll('a[href]')].map(o => o.href),
    noalt: [...document.images].filter(o => !(o.getAttribute('alt') || '').trim()).map(o => o.getAttribute('src')),
    blank: [...document.images].filter(o => !o.complete || !o.naturalWidth).map(o => o.getAttribute('src')),
    images: [...document.images].map(o => o.currentSrc || o.src),
    width: Math.max(document.documentElement.scrollWidth, document.body.scrollWidth),
    side: (() => {      // the theme scrolls a box around the article, not the document
        const res = []
        for (let o = document.querySelector('article'); o; o = o.parentElement)
            if (o.scrollWidth>o.clientWidth+1 && getComputedStyle(o).overflowX!='visible') res.push([o.className || o.tagName, o.scrollWidth])
        return res})(),
    wide: [...document.querySelectorAll('article *')].filter(o => o.getBoundingClientRect().right>innerWidth+1)
        .slice(0,3).map(o => o.tagName.toLowerCase()+'.'+o.className)})'''

@pytest.fixture(scope='module')
def pages(site, web):
    "What the browser found on each page, at the width of a phone"
    res = {}
    for p in sorted(site.rglob('*.html')):
        if '_static' in (rel := p.relative_to(site)).parts: continue
        web.bad.clear()
        web.page.goto(web.url+rel.as_posix(), wait_until='load')
        # A picture below the fold is fetched when somebody scrolls there
        web.page.evaluate('''() => Promise.all([...document.images].map(o => {o.loading = 'eager'; return o.decode().catch(() => 0)}))''')
        res[rel.as_posix()] = SimpleNamespace(**web.page.evaluate(look), bad=list(web.bad), size=p.stat().st_size)
    assert len(res)>20 and {'index.html','search.html','genindex.html'} <= set(res)
    return res

def of(pages, f): return {k:v for k,o in pages.items() if (v := f(o))}

def test_pages_load_without_errors(pages):
    "No message of an error, nothing that fails to load, no request to another host"
    assert not of(pages, lambda o: o.bad)

def test_phone_never_scrolls_sideways(pages):
    assert not of(pages, lambda o: (o.width>phone['width'] or o.side) and (o.width,o.side,o.wide))

def test_images_are_shown_and_have_alt_text(pages):
    assert sum(len(o.images) for o in pages.values())>5
    assert not of(pages, lambda o: o.noalt), 'images without alt text'
    assert not of(pages, lambda o: o.blank), 'images that show nothing'

def test_links_and_anchors_lead_somewhere(pages, site, web):
    def lost(url):
        if not url.startswith(web.url): return urlsplit(url).scheme not in ('http','https','mailto')
        path,frag = urldefrag(url[len(web.url):])
        path = unquote(path.split('?')[0]) or 'index.html'
        return not (site/path).is_file() or (frag and path in pages and unquote(frag) not in pages[path].ids)
    assert sum(len(o.links) for o in pages.values())>1000
    assert not of(pages, lambda o: [l.replace(web.url,'') for l in dict.fromkeys(o.links) if lost(l)])

def test_pages_are_light(pages, site, web):
    "A page and its images are at most 1.5 MB"
    def size(o):
        fs = {site/unquote(urlsplit(u).path[1:]) for u in o.images if u.startswith(web.url)}
        return o.size+sum(f.stat().st_size for f in fs if f.is_file())
    assert not of(pages, lambda o: (n := size(o))>limit and n)

def found(web, q):
    "Where the search page leads for `q`, best first"
    web.bad.clear()
    web.page.goto(web.url+'search.html?q='+q, wait_until='load')
    web.page.wait_for_selector('#search-results ul.search li a')
    web.page.wait_for_function("/found|finished/i.test(document.querySelector('#search-results .search-summary').textContent)")
    res = web.page.eval_on_selector_all('#search-results ul.search li > a', 'os => os.map(o => o.getAttribute("href"))')
    web.page.wait_for_load_state('networkidle')
    assert not web.bad
    return [re.sub(r'\?[^#]*', '', o) for o in res]

@pytest.mark.parametrize('nm', ['callback.LotteryCallback','rounds.Learner.fit_lottery','scopes.make_masks'])
def test_search_finds_symbol(web, nm):
    "The first answer is the symbol's own card"
    mod,sym = nm.split('.')[0],nm.split('.')[-1]
    assert found(web, sym)[0].split('/')[-1]==f'{mod}.html#fastai_lottery.{nm}'

def test_search_finds_words(web):
    assert any('tutorials/late_rewinding.html' in o for o in found(web, 'rewinding'))

def test_dark_switch(web):
    "The button goes round light, dark and the system's choice; each shows, and the choice stays on the next page"
    page,seen = web.page,{}
    page.set_viewport_size(desk)
    try:
        page.goto(web.url+'index.html')
        def now(): return page.evaluate("[document.body.dataset.theme, getComputedStyle(document.body).backgroundColor]")
        seen.update([now()])
        for _ in range(3):
            was = now()[0]
            page.click('.theme-toggle:visible')
            page.wait_for_function('was => document.body.dataset.theme!=was', arg=was)
            seen.update([now()])
            if now()[0]=='dark':
                page.goto(web.url+'core.html')
                assert now()[0]=='dark'
        assert set(seen)=={'auto','light','dark'}
        def lum(s): return sum(map(int, re.findall(r'\d+', s)[:3]))/3
        assert lum(seen['dark'])<80<200<lum(seen['light']) and seen['auto']==seen['light']
    finally:
        page.evaluate('localStorage.clear()')
        page.set_viewport_size(phone)
