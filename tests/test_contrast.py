"Text is told from its ground, in light and in dark, in a real browser: WCAG's AA, 4.5 to 1, and 3 to 1 for large text"
import pytest
from test_site import desk,phone,site,web

pytestmark = pytest.mark.slow
names = ['index','contents','callback','display','settings','genindex','tutorials/first_ticket','tutorials/what_it_looks_like',
         'tutorials/questions','papers/lenet','papers/the_thread']

measure = r'''() => {
    const ctx = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true}), known = {}
    const rgba = s => known[s] ??= (() => {
        ctx.clearRect(0, 0, 1, 1)
        ctx.fillStyle = s
        ctx.fillRect(0, 0, 1, 1)
        const [r, g, b, a] = ctx.getImageData(0, 0, 1, 1).data
        return [r, g, b, a/255]
    })()
    const mix = (under, over, a) => [0, 1, 2].map(i => under[i]+(over[i]-under[i])*a)
    const on = (under, s) => mix(under, rgba(s), rgba(s)[3])
    // Ground and text as they are seen: each element lies on what is under it, and is as opaque as it says
    const seen = ([o, ...rest], under) => {
        const s = getComputedStyle(o), own = on(under, s.backgroundColor)
        const ink = s.fill && o instanceof SVGElement ? s.fill : s.color
        const both = rest.length ? seen(rest, own) : [own, on(own, ink)]
        return both.map(c => mix(under, c, +s.opacity))
    }
    const light = c => c.map(v => v/255).map(v => v<=.04045 ? v/12.92 : ((v+.055)/1.055)**2.4)
        .reduce((sum, v, i) => sum+v*[.2126, .7152, .0722][i], 0)
    const ratio = (a, b) => (Math.max(a, b)+.05)/(Math.min(a, b)+.05)
    const chain = o => o ? [...chain(o.parentElement), o] : []
    const shown = o => o.checkVisibility({opacityProperty: true, visibilityProperty: true}) && o.getClientRects().length
    const called = o => [o, o.parentElement].map(o => `${o.tagName.toLowerCase()}.${o.className.baseVal ?? o.className}`).join(' in ')
    document.querySelectorAll('details').forEach(o => { o.open = true })
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), worst = {}, kinds = new Set()
    let n = 0
    while (walk.nextNode()) {
        const o = walk.currentNode.parentElement
        if (!walk.currentNode.data.trim() || o.closest('script,style,noscript') || !shown(o)) continue
        const s = getComputedStyle(o), px = parseFloat(s.fontSize), large = px>=24 || (px>=18.66 && +s.fontWeight>=700)
        const r = ratio(...seen(chain(o), [255, 255, 255]).map(light)), key = called(o)
        n++
        for (const q of ['article p', 'article a', '.highlight span', '.sidebar-tree a', 'td', 'figcaption', '.sd-card', '.sig',
                         '.ticket-slider text', 'summary', '.admonition']) if (o.closest(q)) kinds.add(q)
        if (r<(large ? 3 : 4.5) && r<(worst[key]?.[0] ?? 99)) worst[key] = [+r.toFixed(2), walk.currentNode.data.trim().slice(0, 40)]
    }
    return {n, worst, kinds: [...kinds]}
}'''

@pytest.fixture(scope='module', params=['light','dark'])
def texts(request, web):
    "Of each page, how many texts it has, of which kinds, and which are too faint"
    web.page.set_viewport_size(desk)
    web.page.emulate_media(color_scheme=request.param)
    res = {}
    for nm in names:
        web.page.goto(f'{web.url}{nm}.html', wait_until='load')
        res[nm] = web.page.evaluate(measure)
    web.page.emulate_media(color_scheme='light')
    web.page.set_viewport_size(phone)
    return res

def test_text_is_told_from_its_ground(texts):
    assert sum(o['n'] for o in texts.values())>2000
    assert not {k:o['worst'] for k,o in texts.items() if o['worst']}

def test_each_kind_of_text_is_measured(texts):
    kinds = {k for o in texts.values() for k in o['kinds']}
    assert kinds=={'article p','article a','.highlight span','.sidebar-tree a','td','figcaption','.sd-card','.sig',
                   '.ticket-slider text','summary','.admonition'}
