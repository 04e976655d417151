"What is wider than its place, in a real browser, says so; that no code is, at a desk, stands in `test_site.py`"
import pytest
from test_site import desk,phone,site,web

pytestmark = pytest.mark.slow

hints = r'''() => [...document.querySelectorAll('.cell_output, .table-wrapper')].map(o => {
    const s = getComputedStyle(o), line = getComputedStyle(o, '::after')
    const says = line.content.includes('more to the right') && line.visibility=='visible' && line.display!='none'
    return {rest: o.scrollWidth-o.clientWidth-o.scrollLeft, wide: o.scrollWidth-o.clientWidth,
            says, fades: s.maskImage.includes('gradient'), figure: !!o.querySelector('img.fig-wide')}
})'''
to_the_end = "document.querySelectorAll('.cell_output, .table-wrapper').forEach(o => { o.scrollLeft = o.scrollWidth })"

@pytest.fixture(params=['tutorials/how_small','papers/lenet','index'])
def wide_page(request, web):
    "A page with a figure, or a table, that is wider than a phone"
    web.page.set_viewport_size(phone)
    web.page.goto(f'{web.url}{request.param}.html', wait_until='load')
    web.page.evaluate("Promise.all([...document.images].map(o => { o.loading = 'eager'; return o.decode().catch(() => 0) }))")
    web.page.wait_for_timeout(300)
    yield web.page
    web.page.set_viewport_size(phone)

def test_what_scrolls_on_a_phone_says_so_until_its_end(wide_page):
    "A faded edge and a line; neither on what fits"
    os = wide_page.evaluate(hints)
    assert [o for o in os if o['wide']>4]
    assert not [o for o in os if not o['says']==o['fades']==(o['rest']>4)]
    height = wide_page.evaluate('document.documentElement.scrollHeight')
    wide_page.evaluate(to_the_end)
    wide_page.wait_for_timeout(300)
    assert not [o for o in wide_page.evaluate(hints) if o['says'] or o['fades']]
    assert abs(wide_page.evaluate('document.documentElement.scrollHeight')-height)<=2

def test_figures_that_fit_a_desk_say_nothing(wide_page):
    wide_page.set_viewport_size(desk)
    wide_page.wait_for_timeout(300)
    assert not [o for o in wide_page.evaluate(hints) if o['figure'] and (o['says'] or o['fades'])]
