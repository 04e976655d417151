"Code fits a page of 1280 pixels, in a real browser: no block scrolls sideways"
import pytest
from test_site import desk,phone,site,web

pytestmark = pytest.mark.slow

look = r'''() => {
    document.querySelectorAll('details').forEach(o => { o.open = true })
    const over = o => o.scrollWidth-o.clientWidth
    const longest = o => o.textContent.split('\n').sort((a, b) => b.length-a.length)[0].slice(0, 120)
    const pre = [...document.querySelectorAll('article pre')].filter(o => o.clientWidth)
    return {n: pre.length, wide: pre.filter(o => over(o)>1).map(o => [over(o), longest(o)])}
}'''

@pytest.fixture(scope='module')
def blocks(site, web):
    "Of each page, how many blocks of code and output it has, and which of them are wider than their place; sources apart"
    res = {}
    web.page.set_viewport_size(desk)
    for p in sorted(site.rglob('*.html')):
        rel = p.relative_to(site)
        if {'_static','_modules'} & {*rel.parts}: continue
        web.page.goto(web.url+rel.as_posix(), wait_until='domcontentloaded')
        res[rel.as_posix()] = web.page.evaluate(look)
    web.page.set_viewport_size(phone)
    return res

def test_no_block_scrolls_sideways(blocks):
    assert sum(o['n'] for o in blocks.values())>400 and len(blocks)>60
    assert not {k:o['wide'] for k,o in blocks.items() if o['wide']}
