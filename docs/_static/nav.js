// The sidebar's entry of this page comes into view; the page itself stays where it is
const box = document.querySelector('.sidebar-scroll'), here = box?.querySelector('.current-page')
if (here) {
  const a = box.getBoundingClientRect(), b = here.getBoundingClientRect()
  if (b.bottom > a.bottom) box.scrollBy({top: b.top - a.top - a.height/2, behavior: 'instant'})
}
