// Where a search finds a word of the page of questions, its answer comes first; excerpts are prose
const answers = 'tutorials/questions'
var Scorer = {
  score: ([doc, title, anchor, descr, score, file, kind]) =>
    doc === answers && (kind === 'title' || anchor) ? score + 200 : score,
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: {0: 15, 1: 5, 2: -5},
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
}

// Code, outputs, signatures and the lists of parameters are left out of what an excerpt is taken from
const not_prose = ['.highlight', '.cell_output pre', '.cell_output table', '.cell_input', 'dt.sig', '.field-list',
  '.told', 'nav', '.toctree-wrapper', 'summary', 'script', 'style', '.headerlink'].join(', ')
window.addEventListener('DOMContentLoaded', () => {
  if (typeof Search === 'undefined') return
  const summary = Search.makeSearchSummary
  const text_of = (html, anchor) => {
    const doc = new DOMParser().parseFromString(html, 'text/html')
    doc.querySelectorAll(not_prose).forEach(o => o.remove())
    let main = (anchor && doc.querySelector(`[role="main"] ${anchor}`)) || doc.querySelector('[role="main"]')
    if (main && !/\w+ \w+ \w+/.test(main.textContent)) main = main.closest('section') || main
    if (main) main.querySelectorAll('h1, h2, h3, h4').forEach(o => o.remove())
    return main ? main.textContent.replace(/\s+/g, ' ').trim() : ''
  }
  Search.htmlToText = text_of
  Search.makeSearchSummary = (html, words, anchor) => {
    const text = text_of(html, anchor), low = text.toLowerCase()
    if (!text) return null
    const at = [...words].map(w => low.indexOf(w.toLowerCase())).filter(i => i > -1).pop() ?? 0
    const from = at < 120 ? 0 : Math.max(text.lastIndexOf('. ', at)+2, text.indexOf(' ', at-120)+1)
    let to = from+240
    if (to < text.length) to = text.lastIndexOf(' ', to)
    const p = document.createElement('p')
    p.classList.add('context')
    p.textContent = (from ? '… ' : '')+text.slice(from, to)+(to < text.length ? ' …' : '')
    return p
  }
})
