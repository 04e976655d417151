"The built site in a real browser: every page, its search, its dark switch, at the width of a phone"
import ast,functools,http.server,os,re,shutil,subprocess,sys,threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote,urldefrag,urlsplit
import pytest

root,lib = Path(__file__).resolve().parent.parent,'fastai_lottery'
chrome = next((p for o in ('chromium','chromium-browser','google-chrome') if (p := shutil.which(o))), None)
try: from playwright.sync_api import sync_playwright
except ImportError: sync_playwright = None
pytestmark = pytest.mark.slow
phone,desk = dict(width=390, height=844),dict(width=1280, height=900)
limit = 700_000                                 # bytes of a page and its images

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "Folder of the built site: `OUT`, that of `make docs`, or one built now"
    out = Path(os.environ.get('OUT', root/'docs/_build/html')).resolve()
    if (out/'index.html').exists(): return out
    if sys.version_info<(3,11): pytest.skip('there is no site: Sphinx 9, which builds it, needs Python 3.11 or newer')
    pytest.importorskip('myst_nb', reason='there is no site: what builds it is in the `docs` extra')
    out = tmp_path_factory.mktemp('site')/'html'
    env = {**os.environ,'OUT':str(out)}
    r = subprocess.run([sys.executable,root/'docs/build.py'], cwd=root, env=env, text=True, capture_output=True)
    assert r.returncode==0, r.stdout+r.stderr
    return out

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

def elsewhere(url): return re.compile(f'^(?!{re.escape(url)}|data:|blob:)')
def watch(page, url, note):
    "Write down whatever goes wrong on a page"
    page.on('request', lambda r: note('request to another host', r.url) if elsewhere(url).match(r.url) else None)
    page.on('requestfailed', lambda r: note('failed', f'{r.url} ({r.failure})'))
    page.on('response', lambda r: note(f'answer {r.status}', r.url) if r.status>=400 else None)
    page.on('console', lambda m: note('console', m.text) if m.type=='error' else None)
    page.on('pageerror', lambda e: note('script', e))

@pytest.fixture(scope='module')
def web(site):
    "The site on localhost, and one page of a browser, which writes down what goes wrong and asks nothing of other hosts"
    if not chrome: pytest.skip('needs Chromium; none is found (Debian: apt-get install chromium)')
    if not sync_playwright: pytest.skip('needs playwright, of the `dev` extra')
    srv = http.server.ThreadingHTTPServer(('127.0.0.1',0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=srv.serve_forever, daemon=True).start()
    url,bad = f'http://127.0.0.1:{srv.server_port}/',[]
    def note(kind, o): bad.append(f'{kind}: {o}'.replace(url,''))
    try:
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=chrome, args=['--no-sandbox'])
            page = browser.new_page(viewport=phone, color_scheme='light')
            page.set_default_timeout(30_000)
            page.route(elsewhere(url), lambda r: r.abort())
            watch(page, url, note)
            yield SimpleNamespace(url=url, page=page, bad=bad)
            browser.close()
    finally:
        srv.shutdown()
        srv.server_close()

look = r'''() => {
    const all = q => [...document.querySelectorAll(q)]
    const box = o => o.getBoundingClientRect(), src = o => o.getAttribute('src')
    const above = []      // the theme scrolls a box around the article, not the document
    for (let o = document.querySelector('article'); o; o = o.parentElement) above.push(o)
    const scrolls = o => getComputedStyle(o).overflowX!='visible'
    const rows = o => [...o.querySelectorAll('tbody th')]
    const numbered = os => os.length && os.every(o => /^\d+$/.test(o.textContent))
    const sticks_out = o => [...o.querySelectorAll('.viewcode-link')].some(l => box(l).bottom>box(o).bottom+1)
    const name = o => o.className || o.tagName
    const said = o => {    // what stands in a card and is no link, code, nor a card within it
        const c = o.querySelector(':scope > dd').cloneNode(true)
        c.querySelectorAll('a, code, dl.py').forEach(q => q.remove())
        return c.textContent
    }
    const plain = o => [...o.querySelectorAll(':scope > dd code.literal')].filter(c => !c.closest('a') && c.closest('dl.py')===o)
    const card = o => {
        const dt = o.querySelector(':scope > dt'), args = [...dt.querySelectorAll('.sig-param')]
        const own = args.map(a => a.textContent.split(/[:=]/)[0].replace(/[*]/g, '').trim())
        return {id: dt.id, own, plain: plain(o).map(c => c.textContent), papers: said(o).match(/\b\d{4}\.\d{4,5}\b/g) || []}
    }
    const is_small = o => o.naturalWidth>1.8*o.naturalHeight && o.clientWidth<Math.min(o.naturalWidth,600)
    return {
        ids: all('[id],a[name]').flatMap(o => [o.id, o.name]).filter(o => typeof o=='string' && o),
        links: all('a[href]').map(o => o.href),
        noalt: [...document.images].filter(o => !(o.getAttribute('alt') || '').trim()).map(src),
        blank: [...document.images].filter(o => !o.complete || !o.naturalWidth).map(src),
        images: [...document.images].map(o => o.currentSrc || o.src),
        unknown: all('*').filter(o => o instanceof HTMLUnknownElement).map(o => o.outerHTML.slice(0,80)),
        low: all('dt.sig').filter(sticks_out).map(o => o.id),
        small: all('.cell_output img').filter(is_small).map(o => [o.alt, o.clientWidth]),
        index: all('table.dataframe').map(rows).filter(numbered).map(os => os[0].clientWidth).filter(w => w>80),
        cards: all('dl.py').filter(o => o.querySelector(':scope > dd')).map(card),
        width: Math.max(document.documentElement.scrollWidth, document.body.scrollWidth),
        side: above.filter(o => o.scrollWidth>o.clientWidth+1 && scrolls(o)).map(o => [name(o), o.scrollWidth]),
        wide: all('article *').filter(o => box(o).right>innerWidth+1).slice(0,3).map(o => [o.tagName, o.className])}
}'''

wider = r'''() => {
    document.querySelectorAll('details').forEach(o => { o.open = true })
    const over = o => o.scrollWidth-o.clientWidth
    const longest = o => o.textContent.split('\n').sort((a, b) => b.length-a.length)[0].slice(0, 120)
    const pre = [...document.querySelectorAll('article pre')].filter(o => o.clientWidth)
    return {n: pre.length, wide: pre.filter(o => over(o)>1).map(o => [over(o), longest(o)])}
}'''

decode_all = '''() => Promise.all([...document.images].map(o => {
    o.loading = 'eager'
    return o.decode().catch(() => 0)
}))'''

@pytest.fixture(scope='module')
def pages(site, web):
    "What the browser found on each page, at the width of a phone; of its blocks of code, at that of a desk"
    res = {}
    for p in sorted(site.rglob('*.html')):
        if '_static' in (rel := p.relative_to(site)).parts: continue
        web.bad.clear()
        web.page.goto(web.url+rel.as_posix(), wait_until='load')
        # A picture below the fold is fetched when somebody scrolls there
        web.page.evaluate(decode_all)
        o = res[rel.as_posix()] = SimpleNamespace(**web.page.evaluate(look), bad=list(web.bad), size=p.stat().st_size)
        if '_modules' in rel.parts: continue
        web.page.set_viewport_size(desk)
        o.blocks = web.page.evaluate(wider)
        web.page.set_viewport_size(phone)
    assert len(res)>20 and {'index.html','search.html','genindex.html'} <= set(res)
    return res

def of(pages, f): return {k:v for k,o in pages.items() if (v := f(o))}

def test_pages_load_without_errors(pages):
    "No message of an error, nothing that fails to load, no request to another host"
    assert not of(pages, lambda o: o.bad)

def test_phone_never_scrolls_sideways(pages):
    assert not of(pages, lambda o: (o.width>phone['width'] or o.side) and (o.width,o.side,o.wide))

def test_no_block_of_code_or_output_scrolls_sideways_at_a_desk(pages):
    os = {k:o.blocks for k,o in pages.items() if hasattr(o, 'blocks')}
    assert sum(o['n'] for o in os.values())>400 and len(os)>60
    assert not {k:o['wide'] for k,o in os.items() if o['wide']}

def test_text_is_no_tag(pages):
    "A `<n>` of a docment is shown, not swallowed as a tag"
    assert not of(pages, lambda o: o.unknown)

def test_source_links_stay_in_their_headers(pages):
    assert not of(pages, lambda o: o.low)

def test_wide_figures_are_legible_on_a_phone(pages):
    assert not of(pages, lambda o: o.small)

def test_plain_numbers_of_rows_take_little_room(pages):
    assert not of(pages, lambda o: o.index)

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
    "A page and its images are at most .7 MB"
    def size(o):
        fs = {site/unquote(urlsplit(u).path[1:]) for u in o.images if u.startswith(web.url)}
        return o.size+sum(f.stat().st_size for f in fs if f.is_file())
    assert not of(pages, lambda o: (n := size(o))>limit and n)

def found(web, q):
    "Where the search page leads for `q`, best first"
    web.bad.clear()
    web.page.goto(web.url+'search.html?q='+q, wait_until='load')
    web.page.wait_for_selector('#search-results ul.search li a')
    summary = "document.querySelector('#search-results .search-summary').textContent"
    web.page.wait_for_function(f'/found|finished/i.test({summary})')
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

_words = ['structured pruning','speed','GPU memory','2:4','latency','onnx','quantization','batchnorm','freeze',
          'transfer learning','IMP','fp16','EMA','DDP','resume','TensorBoard']
@pytest.mark.parametrize('word', _words)
def test_search_answers_what_people_type(web, word):
    "The first hit is the answer in two sentences"
    assert found(web, word)[0].partition('#')[0]=='tutorials/questions.html'

@pytest.mark.parametrize('word', ['GPU memory','late rewinding','pruning'])
def test_search_excerpts_are_prose(web, word):
    "No import, no signature, nothing cut within a word"
    found(web, word)
    web.page.wait_for_selector('#search-results p.context')
    web.page.wait_for_timeout(500)
    texts = web.page.eval_on_selector_all('#search-results p.context', 'os => os.map(o => o.textContent)')
    assert texts and not [t for t in texts if re.search(r'\bimport \*|\bdef \w+\(|>>>|\[source\]', t)]
    assert all(' ' in t for t in texts)

@pytest.fixture
def at_desk(web):
    "The page at the width of a desk, and afterwards as it was"
    web.page.set_viewport_size(desk)
    yield web.page
    web.page.evaluate('localStorage.clear()')
    web.page.set_viewport_size(phone)

def theme(page): return page.evaluate('[document.body.dataset.theme, getComputedStyle(document.body).backgroundColor]')
def next_theme(page):
    was,_ = theme(page)
    page.click('.theme-toggle:visible')
    page.wait_for_function('was => document.body.dataset.theme!=was', arg=was)
    return theme(page)

def test_dark_switch(web, at_desk):
    "The button goes round light, dark and the system's choice; each shows, and the choice stays on the next page"
    at_desk.goto(web.url+'index.html')
    seen = dict([theme(at_desk)])
    for _ in range(3):
        seen.update([next_theme(at_desk)])
        if theme(at_desk)[0]=='dark':
            at_desk.goto(web.url+'core.html')
            assert theme(at_desk)[0]=='dark'
    assert set(seen)=={'auto','light','dark'}
    def lum(s): return sum(map(int, re.findall(r'\d+', s)[:3]))/3
    assert lum(seen['dark'])<80<200<lum(seen['light']) and seen['auto']==seen['light']

@pytest.mark.parametrize('nm', ['plots','all','tutorials/first_ticket'])
def test_sidebar_shows_the_page_one_is_on(web, at_desk, nm):
    "Its entry is in view, and the page is at its top"
    at_desk.goto(web.url+nm+'.html', wait_until='load')
    def box(q): return at_desk.evaluate('q => document.querySelector(q).getBoundingClientRect()', q)
    bar,here = box('.sidebar-scroll'),box('.sidebar-scroll .current-page')
    assert at_desk.evaluate('scrollY')==0 and bar['top']<=here['top'] and here['bottom']<=bar['bottom']

def test_front_door_is_the_first_screen(web, at_desk):
    "One sentence, four lines of code, the loop, a picture with the dense line and three doors within 800 pixels"
    at_desk.set_viewport_size(dict(width=1280, height=800))
    at_desk.goto(web.url+'index.html', wait_until='load')
    at = """q => [...document.querySelectorAll(q)].map(o => Math.round(o.getBoundingClientRect().bottom))"""
    for q,n in (('.lead',1), ('.drawings svg',4), ('.tag_beside img',1), ('.doors .sd-card',3)):
        ys = at_desk.evaluate(at, q)
        assert len(ys)==n and max(ys)<=800, (q,ys)
    at_desk.set_viewport_size(desk)

def test_sidebar_has_the_ways_of_a_reader(web):
    "Start, Practice, Research, Library; in the library first what everybody uses"
    web.page.goto(web.url+'index.html')
    heads = web.page.eval_on_selector_all('.sidebar-tree p.caption', 'os => os.map(o => o.textContent.trim())')
    assert heads==['Start','Practice','Research','Library','Project']
    names = web.page.eval_on_selector_all('.sidebar-tree li.toctree-l1 > a', 'os => os.map(o => o.textContent.trim())')
    at = names.index('LotteryCallback')
    assert names[at+1:at+7]==['fit_lottery','Values','One lottery','What is done with it','The laboratory','What is seen']

def test_page_of_cards_leads_to_every_guide_page_and_room(site):
    s,nbs = html(site, 'contents'),root/'nbs'
    pages = [p for d in ('','tutorials/','papers/') for p in nbs.glob(d+'[0-9]*.ipynb')]
    ends = [p.relative_to(nbs).with_name(re.sub(r'^\d+_', '', p.stem)).as_posix()+'.html' for p in pages]
    assert len(pages)>80 and not [e for e in ends if f'href="{e}"' not in s]

def test_each_guide_says_what_it_costs():
    "Its line in docs/pages.txt; the site shows it on top"
    lines = dict(re.findall(r'^(\w+/\w+) \| ([^|\n]*)', (root/'docs/pages.txt').read_text(encoding='utf-8'), re.M))
    stems = ['tutorials/'+p.stem for p in (root/'nbs/tutorials').glob('[0-9]*.ipynb')]
    assert not [o for o in stems if not lines.get(o, '').strip()]
    assert not [o for o in lines if not (root/'nbs'/f'{o}.ipynb').exists()]

@pytest.mark.parametrize('nm', ['tutorials/first_ticket','papers/lenet','callback'])
def test_notebook_of_a_page_can_be_downloaded(site, nm):
    link = re.search(r'<a href="([^"]*notebooks/[^"]*\.ipynb)" download', html(site, nm))
    assert link and (site/nm).parent.joinpath(link[1]).resolve().is_file()

sourced = """
import ways
from symbols import cfg
for p in 'index.ipynb','tutorials/01_first_ticket.ipynb': print(ways.source(cfg.nbs_path/p))
print('Source' in ways.told(cfg.nbs_path/'36_cheap.ipynb'))
"""

@pytest.mark.parametrize('given,declared,base', [
    ('','',''), ('https://host.org/own/name.git','','https://host.org/own/name'),
    ('','https://host.org/a/b/','https://host.org/a/b'), ('https://host.org/own/name','https://host.org/a/b','https://host.org/own/name')])
def test_source_links_lead_to_the_named_repository(tmp_path, given, declared, base):
    "To the notebook on its branch; where no repository is named there is no link"
    (tmp_path/'docs').mkdir()
    shutil.copytree(root/lib, tmp_path/lib, ignore=shutil.ignore_patterns('__pycache__'))
    for o in 'symbols','ways': shutil.copy(root/f'docs/{o}.py', tmp_path/'docs')
    shutil.copy(root/'docs/pages.txt', tmp_path/'docs')
    urls = f'[project.urls]\nRepository = "{declared}"\n\n[project.scripts]' if declared else '[project.scripts]'
    toml = (root/'pyproject.toml').read_text(encoding='utf-8')
    (tmp_path/'pyproject.toml').write_text(toml.replace('[project.scripts]', urls), encoding='utf-8')
    env = {**os.environ,'PYTHONPATH':'docs','GIT_URL':given}
    r = subprocess.run([sys.executable,'-c',sourced], cwd=tmp_path, env=env, text=True, capture_output=True)
    assert r.returncode==0, r.stderr
    paths = ['nbs/index.ipynb','nbs/tutorials/01_first_ticket.ipynb']
    assert r.stdout.splitlines()==[*[f'{base}/blob/main/{o}' if base else '' for o in paths], str(bool(base))]
    assert all((root/o).is_file() for o in paths)

def test_source_links_need_an_address():
    env = {**os.environ,'PYTHONPATH':'docs','GIT_URL':'git@host.org:own/name.git'}
    r = subprocess.run([sys.executable,'-c',sourced], cwd=root, env=env, text=True, capture_output=True)
    assert r.returncode and "'git@host.org:own/name'" in r.stderr and 'https://host/owner/name' in r.stderr

def test_phone_shows_verdicts_first(web):
    "The column stands behind the claim, and within the window"
    web.page.goto(web.url+'papers/lenet.html', wait_until='load')
    box = web.page.evaluate("document.querySelector('table.verdicts td').getBoundingClientRect().toJSON()")
    assert box['right']<=phone['width']

sliders = {'weights':15, 'channels':6}         # the page's pictures that move, and their last rounds

@pytest.fixture
def ticket_page(web):
    web.page.goto(web.url+'tutorials/what_it_looks_like.html', wait_until='load')
    return web.page

def seen_in(page, kind):
    "What a slider says and draws: text, each part's attributes"
    return page.evaluate("""kind => {
        const o = document.querySelector(`.ticket-slider.${kind}`), all = q => [...o.querySelectorAll(q)]
        const read = p => p.dataset.part=='pixels' ? p.innerHTML : p.cloneNode(true).outerHTML
        return {said: o.querySelector('output').textContent, told: o.querySelector('input').ariaValueText,
                parts: Object.fromEntries(all('[data-part]').map(p => [p.dataset.part, read(p)])), all: all('.moves')[0].innerHTML}
    }""", kind)

@pytest.mark.parametrize('kind,end', sliders.items())
def test_the_picture_of_a_ticket_moves(ticket_page, kind, end):
    "By keyboard; all that a round has of its own is drawn anew, and says which round it is"
    last = seen_in(ticket_page, kind)
    assert last['said'].startswith(f'round {end}:')
    ticket_page.focus(f'.ticket-slider.{kind} input')
    ticket_page.keyboard.press('Home')
    first = seen_in(ticket_page, kind)
    assert first['said'].startswith('dense net:') and first['told']==first['said']
    assert not [n for n,o in first['parts'].items() if o==last['parts'][n]]
    ticket_page.keyboard.press('ArrowRight')
    assert seen_in(ticket_page, kind)['said'].startswith('round 1:')
    ticket_page.keyboard.press('End')
    assert seen_in(ticket_page, kind)==last

@pytest.mark.parametrize('kind,end', sliders.items())
def test_the_picture_of_a_ticket_without_scripts(web, ticket_page, kind, end):
    "The page has the last round as the script draws it, and nothing to pull at"
    drawn = seen_in(ticket_page, kind)
    ctx = web.page.context.browser.new_context(java_script_enabled=False, viewport=phone)
    page = ctx.new_page()
    page.goto(web.url+'tutorials/what_it_looks_like.html', wait_until='load')
    root = page.locator(f'.ticket-slider.{kind}')
    assert root.locator('output').text_content()==drawn['said'] and drawn['said'].startswith(f'round {end}:')
    assert root.locator('.moves').inner_html()==drawn['all']
    assert root.locator('svg').first.is_visible() and not root.locator('input').is_visible()
    ctx.close()

def test_the_pixels_of_a_ticket_are_those_that_are_read(ticket_page):
    "As many strokes as the words say, in 28 rows, in each round"
    for k in range(16):
        ticket_page.locator('.ticket-slider.weights input').fill(str(k))
        said = int(re.search(r'(\d+) of 784', seen_in(ticket_page, 'weights')['said'])[1])
        at = re.findall(r'M(\d+) (\d+)h1', seen_in(ticket_page, 'weights')['parts']['pixels'])
        assert len(at)==len(set(at))==said and all(max(map(int, o))<28 for o in at)

def test_the_net_is_drawn_to_scale(ticket_page):
    "In each round a layer's bar is as wide as its channels, in one unit, with the dense net's frame around its middle"
    for k in range(7):
        ticket_page.locator('.ticket-slider.channels input').fill(str(k))
        rows = ticket_page.locator('.channels [data-part^="conv"][data-part$="text"]').evaluate_all("""ts => ts.map(
            t => [t.textContent, ...[t.nextSibling, t.nextSibling.nextSibling].map(o => o.getBBox())
                .flatMap(b => [b.width, b.x+b.width/2])])""")
        assert len(rows)==3
        for text,w,mid,frame,middle in rows:
            n,most = map(int, re.search(r'(\d+) of (\d+)$', text).groups())
            assert abs(w-3*n)<.1 and abs(frame-3*most)<.1 and abs(mid-middle)<.1

@pytest.mark.parametrize('kind', sliders)
def test_the_picture_of_a_ticket_fits_a_phone(ticket_page, kind):
    "Slider and pictures are one screen, and their words are legible"
    root = ticket_page.locator(f'.ticket-slider.{kind}')
    assert root.bounding_box()['height']<phone['height']-100
    sizes = root.evaluate("""o => [...o.querySelectorAll('text')].map(t => [
        parseFloat(getComputedStyle(t).fontSize)*t.getScreenCTM().a, t.getBoundingClientRect().right,
        t.getBoundingClientRect().right-t.ownerSVGElement.getBoundingClientRect().right])""")
    assert len(sizes)>7 and min(px for px,*_ in sizes)>=10.5
    assert max(r for _,r,_ in sizes)<=phone['width'] and max(o for *_,o in sizes)<=0

def test_title_does_not_break_on_a_phone(web):
    web.page.goto(web.url+'callback.html', wait_until='load')
    lines = web.page.evaluate("""() => {
        const h = document.querySelector('h1'), s = getComputedStyle(h)
        return h.getBoundingClientRect().height/parseFloat(s.lineHeight)}""")
    assert lines<1.5

def test_sidebar_names_differ(web):
    web.page.goto(web.url+'index.html')
    names = web.page.eval_on_selector_all('.sidebar-tree a', 'os => os.map(o => o.textContent)')
    assert len(names)>20 and len(set(names))==len(names)

# --- cards

mods = {p.stem:ast.parse(p.read_text(encoding='utf-8')) for p in sorted((root/lib).glob('[!_]*.py')) if p.stem!='all'}
def html(site, nm): return (site/f'{nm}.html').read_text(encoding='utf-8')
def ids(s, mod): return re.findall(rf'<dt class="sig[^>]* id="fastai_lottery\.{mod}\.([\w.]+)"', s)

def defines(o):
    "The name that a statement defines, if any"
    return getattr(o,'name',None) or (getattr(o.targets[0],'id','') if isinstance(o,ast.Assign) else '')

def names(tree): return next((ast.literal_eval(o.value) for o in tree.body if defines(o)=='__all__'), [])

@pytest.mark.parametrize('mod', mods)
def test_each_name_has_a_card_in_the_order_of_the_source(site, mod):
    have = [n for n in ids(html(site, mod), mod) if '.' not in n]
    lines = {defines(o):o.lineno for o in mods[mod].body}
    assert have == sorted(names(mods[mod]), key=lines.get)

@pytest.mark.parametrize('mod', mods)
def test_page_of_all_names_links_it(site, mod):
    have = set(re.findall(rf'href="{mod}\.html#fastai_lottery\.{mod}\.(\w+)"', html(site, 'all')))
    assert set(names(mods[mod])) <= have

@pytest.mark.parametrize('nm,field', [('experiments.Preset','settings'),('arms.Run','learn'),('fits.Round','row')])
def test_fields_of_a_dataclass(site, nm, field):
    s = html(site, nm.split('.')[0])
    s = s[s.index(f'id="fastai_lottery.{nm}"'):]
    assert f'<strong>{field}</strong>' in s[:s.index('<section') if '<section' in s else None]

def test_cards_say_what_is_ours(site):
    "No docstring of a base class, no default that is an object of the interpreter"
    strange = re.compile(r'Define the computation|Return self==|built-in function|built-in</span>')
    assert not {p.name:m[0] for p in site.glob('*.html') if (m := strange.search(p.read_text(encoding='utf-8')))}

@pytest.mark.parametrize('nm', ['data.digits','core.prunable','resets.rewind'])
def test_words_that_only_look_like_a_name_are_not_linked(site, nm):
    "An experiment, a column, a verb"
    home,word = nm.split('.')
    linked = re.compile(rf'#{lib}\.{nm}"[^>]*><code[^>]*>(<[^>]*>)*{word}<')
    pages = [p for p in site.rglob('*.html') if p.stem not in ('all','genindex',home) and '_modules' not in p.parts]
    assert pages and not [p.relative_to(site).as_posix() for p in pages if linked.search(p.read_text(encoding='utf-8'))]

# words that are also experiments, columns of a table, or verbs of another sort
two_meanings = {'arms','digits','presets','prunable','rewind','words'}
def called(word): return re.sub(r'[(\[].*', '', word).replace('learn.lottery.','LotteryCallback.').replace('learn.','Learner.')

def test_names_in_cards_are_links(pages):
    "Whatever has a card; but for the card's own name, its arguments, and words of two meanings"
    homes = {i.split('.', 2)[2] for o in pages.values() for i in o.ids if re.match(rf'{lib}\.\w+\.\w', i)}
    assert {'Ticket','Learner.fit_lottery','LotteryCallback.ticket'} <= homes
    known = homes|{n.partition('.')[2] for n in homes if n.startswith('Learner.')}
    def is_own(w, c): return w in (*c['own'], c['id'].split('.')[-1]) or c['id'].endswith(f'.{called(w)}')
    def lost(c): return [w for w in c['plain'] if called(w) in known-two_meanings and not is_own(w, c)]
    assert not {c['id']:ws for o in pages.values() for c in o.cards if (ws := lost(c))}

def test_papers_in_cards_are_links(pages):
    assert not {c['id']:c['papers'] for o in pages.values() for c in o.cards if c['papers']}

@pytest.mark.parametrize('nm,to', [('rounds.Learner.fit_lottery','criteria.html scopes.html resets.html abs/1903.01611'),
                                   ('callback.LotteryCallback','units.html core.html#fastai_lottery.core.competing')])
def test_a_card_leads_on(site, nm, to):
    "To the page of all criteria, say, where its text says see"
    s = html(site, nm.split('.')[0])
    s = s[s.index(f'id="{lib}.{nm}"'):]
    assert not [o for o in to.split() if f'{o}"' not in s[:s.index('<div class="cell')]]

toy = '''
from os.path import join as lost
__all__ = ['told','above','silent','Klass','f','unseen','lost']
told = (1,) # What it is
# What this is,
# in two lines
above = {}
silent = []
class Klass(dict):
    "A class"
    def mine(self): pass
    def get(self, k): pass
    def _own(self): pass
def f(): "What it does"
def unseen(): "What it does"
'''

ask = '''
import symbols
symbols.shown.update(symbols.exported-{'fastai_lottery.toy.unseen'})
print(*symbols.missing())
print(symbols.data['fastai_lottery.toy.above'])
'''

def test_build_names_what_is_undocumented(tmp_path):
    "A function, a value, a method; one that a base class has may be silent"
    (tmp_path/'docs').mkdir()
    (lib := tmp_path/'fastai_lottery').mkdir()
    for o in 'pyproject.toml','docs/symbols.py': shutil.copy(root/o, tmp_path/o)
    (lib/'__init__.py').write_text('__version__ = "0"\n')
    (lib/'_modidx.py').write_text("d = dict(settings={}, syms={})\n")
    (lib/'toy.py').write_text(toy)
    env = {**os.environ,'PYTHONPATH':'docs'}
    r = subprocess.run([sys.executable,'-c',ask], cwd=tmp_path, env=env, text=True, capture_output=True)
    assert r.returncode==0, r.stderr
    untold = [f'fastai_lottery.toy.{n}' for n in ('silent','Klass.mine','unseen','lost')]
    assert r.stdout.splitlines() == [' '.join(untold), 'What this is, in two lines']
